"""PyramidNet with ShakeDrop: residual networks whose width grows in every block.

Source: Han, Kim and Kim, "Deep Pyramidal Residual Networks" (CVPR 2017) and github.com/dyhan0920/PyramidNet-PyTorch:
depth 110 with alpha 48 has 1.7 million parameters, depth 272 with alpha 200 and bottlenecks 26.0 million. ShakeDrop
is in `noise.ShakeDrop`; its probability rises linearly with the block, as in stochastic depth.
"""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from .contract import PooledNetwork, untrained_cfgs
from .noise import ShakeDrop

STEM_WIDTH = 16
STAGES = 3
EXPANSION = 4  # of a bottleneck


def basic(in_width: int, width: int, stride: int) -> nn.Sequential:
    """BN, 3x3, BN, ReLU, 3x3, BN."""
    return nn.Sequential(
        nn.BatchNorm2d(in_width),
        nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
    )


def bottleneck(in_width: int, width: int, stride: int) -> nn.Sequential:
    """BN, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1 to four times the width, BN."""
    return nn.Sequential(
        nn.BatchNorm2d(in_width),
        nn.Conv2d(in_width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, EXPANSION * width, 1, bias=False),
        nn.BatchNorm2d(EXPANSION * width),
    )


class Block(nn.Module):
    """A residual block with ShakeDrop. The shortcut has no weights: it averages 2x2 pixels and pads channels with 0."""

    def __init__(self, residual: nn.Sequential, stride: int, new_channels: int, drop: float) -> None:
        super().__init__()
        self.residual, self.stride, self.new_channels = residual, stride, new_channels
        self.shake = ShakeDrop(drop) if drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H / stride, W / stride]."""
        change: Tensor = self.shake(self.residual(x))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return change + F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


class PyramidNet(PooledNetwork):
    """PyramidNet with timm's feature contract.

    Args:
        depth: number of layers, 9n + 2 with bottlenecks and 6n + 2 without.
        alpha: by how much the width grows, evenly over all blocks.
        bottlenecks: whether the blocks are bottlenecks.
        num_classes: number of logits; 0 leaves the classifier out.
        in_chans: channels of the images.
        drop_path_rate: ShakeDrop's probability in the last block; 0 leaves ShakeDrop out.

    Raises:
        ValueError: `depth` has another form.
    """

    def __init__(
        self,
        depth: int,
        alpha: int,
        bottlenecks: bool,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_path_rate: float = 0.5,
    ) -> None:
        super().__init__()
        build, expansion, convolutions = (bottleneck, EXPANSION, 3) if bottlenecks else (basic, 1, 2)
        blocks, rest = divmod(depth - 2, STAGES * convolutions)
        if rest or blocks < 1:
            raise ValueError(f"depth {depth} is not {STAGES * convolutions}n + 2")
        self.conv1 = nn.Conv2d(in_chans, STEM_WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        before, total = STEM_WIDTH, STAGES * blocks
        for number in range(STAGES):
            stage = nn.Sequential()
            for position in range(blocks):
                done = number * blocks + position + 1
                width, stride = round(STEM_WIDTH + alpha * done / total), 2 if number and not position else 1
                after = expansion * width
                drop = drop_path_rate * done / total
                stage.append(Block(build(before, width, stride), stride, after - before, drop))
                before = after
            self.add_stage(stage, before, reduction=2**number)
        self.bn = nn.BatchNorm2d(before)
        self.finish(before, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to feature maps [B, F, H / 4, W / 4]."""
        return F.relu(self.bn(self.run_stages(self.bn1(self.conv1(x)))))


def _pyramidnet(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    network: nn.Module = build_model_with_cfg(PyramidNet, name, pretrained, **arguments)
    return network


default_cfgs = untrained_cfgs("pyramidnet110_a48", "pyramidnet272_a200")


@register_model
def pyramidnet110_a48(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """PyramidNet-110, alpha 48, with ShakeDrop, for small machines: 1.7 million parameters."""
    settings = {"depth": 110, "alpha": 48, "bottlenecks": False}
    return _pyramidnet("pyramidnet110_a48", pretrained, settings | arguments)


@register_model
def pyramidnet272_a200(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """PyramidNet-272, alpha 200, bottlenecks, with ShakeDrop: 26.0 million parameters with 10 classes."""
    settings = {"depth": 272, "alpha": 200, "bottlenecks": True}
    return _pyramidnet("pyramidnet272_a200", pretrained, settings | arguments)
