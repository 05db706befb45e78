"""The measurements of `mapolicy bench`: operations, crops of photos, the bilevel step, training with a frozen policy.

Each is compared with alternatives. No other package imports this one.
"""
