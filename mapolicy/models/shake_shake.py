"""Shake-Shake networks: residual blocks of two branches, mixed at random.

Source: Gastaldi, "Shake-Shake regularization" (2017) and github.com/xgastaldi/shake-shake: Shake-Shake 26 2x96d has
26.2 million parameters, 26 2x32d 2.9 million.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from .contract import PooledNetwork, untrained_cfgs
from .noise import ShakeShake

DEPTH = 26
STEM_WIDTH = 16
STAGES = 3
BLOCKS = (DEPTH - 2) // (STAGES * 2)


def branch(in_width: int, out_width: int, stride: int) -> nn.Sequential:
    """ReLU, 3x3, BN, ReLU, 3x3, BN."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_width, out_width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_width),
        nn.ReLU(),
        nn.Conv2d(out_width, out_width, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_width),
    )


class Shortcut(nn.Module):
    """Two strided 1x1 convolutions, of the pixels and of the image shifted by one pixel, whose channels are joined."""

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_width, out_width // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(in_width, out_width - out_width // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H / stride, W / stride]."""
        activated = F.relu(x)
        neighbours = F.pad(activated, (1, -1, 1, -1))
        step = self.stride
        halves = [self.conv1(activated[..., ::step, ::step]), self.conv2(neighbours[..., ::step, ::step])]
        normalised: Tensor = self.bn(torch.cat(halves, dim=1))
        return normalised


class Block(nn.Module):
    """A residual block of two branches, mixed by Shake-Shake."""

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.branch1 = branch(in_width, out_width, stride)
        self.branch2 = branch(in_width, out_width, stride)
        self.shake = ShakeShake()
        self.shortcut = nn.Identity() if in_width == out_width else Shortcut(in_width, out_width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H / stride, W / stride]."""
        mixed: Tensor = self.shake(self.branch1(x), self.branch2(x)) + self.shortcut(x)
        return mixed


class ShakeShakeNetwork(PooledNetwork):
    """Shake-Shake 26 2x(width)d with timm's feature contract.

    Args:
        width: channels of the first stage; each further stage has twice as many.
        num_classes: number of logits; 0 leaves the classifier out.
        in_chans: channels of the images.
    """

    def __init__(self, width: int, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, STEM_WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        before = STEM_WIDTH
        for number in range(STAGES):
            stage = nn.Sequential()
            for position in range(BLOCKS):
                stage.append(Block(before, width * 2**number, stride=2 if number and not position else 1))
                before = width * 2**number
            self.add_stage(stage, before, reduction=2**number)
        self.finish(before, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to feature maps [B, 4 width, H / 4, W / 4]."""
        return F.relu(self.run_stages(self.bn1(self.conv1(x))))


def _shake_shake(name: str, pretrained: bool, width: int, **arguments: Any) -> nn.Module:
    network: nn.Module = build_model_with_cfg(ShakeShakeNetwork, name, pretrained, width=width, **arguments)
    return network


default_cfgs = untrained_cfgs("shakeshake26_2x32d", "shakeshake26_2x96d", "shakeshake26_2x112d")


@register_model
def shakeshake26_2x32d(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Shake-Shake 26 2x32d, for small machines: 2.9 million parameters."""
    return _shake_shake("shakeshake26_2x32d", pretrained, width=32, **arguments)


@register_model
def shakeshake26_2x96d(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Shake-Shake 26 2x96d: 26.2 million parameters."""
    return _shake_shake("shakeshake26_2x96d", pretrained, width=96, **arguments)


@register_model
def shakeshake26_2x112d(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Shake-Shake 26 2x112d: 35.6 million parameters."""
    return _shake_shake("shakeshake26_2x112d", pretrained, width=112, **arguments)
