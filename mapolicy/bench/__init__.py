"""What `mapolicy bench` measures: the operations, the bilevel step, training with a frozen policy; each against rivals.

Nothing else of the library needs it.
"""
