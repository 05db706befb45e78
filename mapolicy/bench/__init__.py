"""The measurements of `mapolicy bench`: image operations, the bilevel step, and training with a frozen policy.

Each is compared with alternatives. No other package imports this one.
"""
