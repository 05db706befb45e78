"""Wide residual networks for small images.

Source: Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016) and github.com/szagoruyko/wide-residual-networks.
Blocks are pre-activation; the shortcut's convolution takes the activated input.
"""

import re
from typing import Any

import timm
import torch.nn.functional as F
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from .contract import PooledNetwork, untrained_cfgs

# At most three digits for the depth and two for the width, because a name may come from an untrusted file.
NAME = re.compile(r"wrn([1-9][0-9]{1,2})_([1-9][0-9]?)", re.ASCII)
LISTED = ("wrn10_1", "wrn16_2", "wrn28_10", "wrn40_2")

STAGE_WIDTHS = (16, 32, 64)
BLOCK_CONVOLUTIONS = 2


class Block(nn.Module):
    """A residual block: BN, ReLU, 3x3, BN, ReLU, dropout, 3x3."""

    def __init__(self, in_width: int, out_width: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, bias=False)
        same = in_width == out_width and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_width, out_width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x))
        hidden = F.relu(self.bn2(self.conv1(activated)))
        change: Tensor = self.conv2(self.drop(hidden))
        residual: Tensor = x if self.shortcut is None else self.shortcut(activated)
        return change + residual


class WideResNet(PooledNetwork):
    """WRN-depth-widen_factor with timm's feature contract.

    WRN-28-10 has 36.48 million parameters with 10 classes and 36.54 million with 100, WRN-40-2 2.24 and 2.26 million.

    Args:
        depth: number of layers, 6n + 4.
        widen_factor: width relative to a plain residual network.
        num_classes: number of logits; 0 leaves the classifier out.
        in_chans: channels of the images.
        drop_rate: dropout inside the blocks, as in the paper.
        stem_stride: stride of the first convolution. The paper uses 1; 2 takes a quarter of the time and suits larger
            images with coarse detail.

    Raises:
        ValueError: depth is not 6n + 4.
    """

    def __init__(
        self,
        depth: int,
        widen_factor: int,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if not _is_depth(depth):
            raise ValueError(f"depth {depth} is not 6n + 4")
        self.conv1 = nn.Conv2d(in_chans, STAGE_WIDTHS[0], 3, stem_stride, padding=1, bias=False)
        width = STAGE_WIDTHS[0]
        for number, base in enumerate(STAGE_WIDTHS, start=1):
            stage = nn.Sequential()
            for position in range(_blocks(depth)):
                stride = 2 if number > 1 and position == 0 else 1
                stage.append(Block(width, base * widen_factor, stride, drop_rate))
                width = base * widen_factor
            self.add_stage(stage, width, reduction=stem_stride * 2 ** (number - 1))
        self.bn = nn.BatchNorm2d(width)
        self.finish(width, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to feature maps [B, 64 widen_factor, H / (4 stem_stride), W / (4 stem_stride)]."""
        return F.relu(self.bn(self.run_stages(self.conv1(x))))


def _blocks(depth: int) -> int:
    return (depth - 4) // (len(STAGE_WIDTHS) * BLOCK_CONVOLUTIONS)


def _is_depth(depth: int) -> bool:
    return depth > 4 and (depth - 4) % (len(STAGE_WIDTHS) * BLOCK_CONVOLUTIONS) == 0


def register(name: str) -> bool:
    """Register a wide residual network in timm by its name, `wrnDEPTH_WIDTH`.

    Returns:
        Whether it is a name of that form with a depth that exists.
    """
    match = NAME.fullmatch(name)
    if match is None or not _is_depth(depth := int(match[1])):
        return False
    if timm.is_model(name):
        return True
    widen_factor = int(match[2])

    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        network: nn.Module = build_model_with_cfg(
            WideResNet, name, pretrained, depth=depth, widen_factor=widen_factor, **arguments
        )
        return network

    build.__name__ = name
    build.__doc__ = f"WRN-{depth}-{widen_factor}."
    default_cfgs.update(untrained_cfgs(name))
    register_model(build)
    return True


default_cfgs: dict[str, Any] = {}  # the name under which timm looks for a module's configurations
for _name in LISTED:
    register(_name)
