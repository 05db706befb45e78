"""The paper's networks that timm does not have; importing this package registers them in timm."""

from . import pyramidnet, shake_shake, wide_resnet

__all__ = ["pyramidnet", "shake_shake", "wide_resnet"]
