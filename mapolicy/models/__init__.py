"""Networks of the paper that timm does not have; importing this package registers them in timm."""

from . import wide_resnet

__all__ = ["wide_resnet"]
