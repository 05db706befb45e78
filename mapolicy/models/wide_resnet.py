"""Wide residual networks for small images.

Source: Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016) and github.com/szagoruyko/wide-residual-networks:
pre-activation blocks, the shortcut's projection takes the activated input.
"""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

STAGE_WIDTHS = (16, 32, 64)
BLOCK_CONVOLUTIONS = 2


class Block(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, dropout, 3x3, and the shortcut."""

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


class WideResNet(nn.Module):
    """WRN-depth-widen_factor with timm's feature contract.

    Args:
        depth: 6n + 4 layers.
        widen_factor: width over that of a plain residual network.
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the images.
        drop_rate: dropout inside the blocks, as in the paper.
        stem_stride: stride of the first convolution, 1 in the paper; 2 costs a quarter, for images whose detail is
            coarse.

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
        blocks, rest = divmod(depth - 4, 3 * BLOCK_CONVOLUTIONS)
        if rest or blocks < 1:
            raise ValueError(f"depth {depth} is not 6n + 4")
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_chans, STAGE_WIDTHS[0], 3, stem_stride, padding=1, bias=False)
        width = STAGE_WIDTHS[0]
        self.feature_info = []
        for number, base in enumerate(STAGE_WIDTHS, start=1):
            stage = nn.Sequential()
            for position in range(blocks):
                stride = 2 if number > 1 and position == 0 else 1
                stage.append(Block(width, base * widen_factor, stride, drop_rate))
                width = base * widen_factor
            self.add_module(f"stage{number}", stage)
            self.feature_info.append(
                {"num_chs": width, "reduction": stem_stride * 2 ** (number - 1), "module": f"stage{number}"}
            )
        self.bn = nn.BatchNorm2d(width)
        self.num_features = self.head_hidden_size = width
        self.fc = self._classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer for another number of classes; only average pooling is known."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool {global_pool!r} is not 'avg'")
        self.num_classes = num_classes
        self.fc = self._classifier(num_classes).to(self.conv1.weight.device)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to feature maps [B, 64 widen_factor, H / 4, W / 4], by stem_stride smaller yet."""
        x = self.conv1(x)
        for number in range(1, len(STAGE_WIDTHS) + 1):
            x = self.get_submodule(f"stage{number}")(x)
        return F.relu(self.bn(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps to the pooled feature [B, F] or the logits [B, num_classes]."""
        feature = x.mean(dim=(2, 3))
        if pre_logits:
            return feature
        logits: Tensor = self.fc(feature)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


def _wide_resnet(name: str, pretrained: bool, depth: int, widen_factor: int, **arguments: Any) -> nn.Module:
    network: nn.Module = build_model_with_cfg(
        WideResNet, name, pretrained, depth=depth, widen_factor=widen_factor, **arguments
    )
    return network


# timm asks for a tag where weights come from; there are none.
_NAMES = ("wrn10_1.untrained", "wrn16_2.untrained", "wrn28_10.untrained", "wrn40_2.untrained")
_CONFIGURATION = {"input_size": (3, 32, 32), "num_classes": 10, "first_conv": "conv1", "classifier": "fc", "url": ""}
default_cfgs = generate_default_cfgs(dict.fromkeys(_NAMES, _CONFIGURATION))


@register_model
def wrn10_1(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """WRN-10-1, for tests and small data."""
    return _wide_resnet("wrn10_1", pretrained, depth=10, widen_factor=1, **arguments)


@register_model
def wrn16_2(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """WRN-16-2, for tests and small data."""
    return _wide_resnet("wrn16_2", pretrained, depth=16, widen_factor=2, **arguments)


@register_model
def wrn28_10(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """WRN-28-10: 36.48 million parameters with 10 classes, 36.54 million with 100."""
    return _wide_resnet("wrn28_10", pretrained, depth=28, widen_factor=10, **arguments)


@register_model
def wrn40_2(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """WRN-40-2: 2.24 million parameters with 10 classes, 2.26 million with 100."""
    return _wide_resnet("wrn40_2", pretrained, depth=40, widen_factor=2, **arguments)
