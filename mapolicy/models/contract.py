"""Base class of the networks for small images: timm's interface for features and classifier, and initialisation."""

from collections.abc import Mapping
from typing import Any

from timm.models import generate_default_cfgs
from torch import Tensor, nn

SMALL_IMAGES = {"input_size": (3, 32, 32), "num_classes": 10, "first_conv": "conv1", "classifier": "fc", "url": ""}


def untrained_cfgs(*names: str) -> Mapping[str, Any]:
    """timm's configurations for networks that take 32x32 images and have no pretrained weights."""
    # timm requires a tag for the origin of the weights.
    configurations: Mapping[str, Any] = generate_default_cfgs({f"{name}.untrained": SMALL_IMAGES for name in names})
    return configurations


class PooledNetwork(nn.Module):
    """A network whose feature is the mean over the last feature maps and whose classifier is one linear layer.

    A subclass builds its layers, calls `finish` at the end of `__init__`, and implements `forward_features`.

    Attributes:
        num_classes: number of logits; 0 if there is no classifier.
        num_features, head_hidden_size: width of the feature.
        feature_info: the stages in timm's format.
        fc: the classifier.
    """

    num_classes: int
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = []

    def add_stage(self, stage: nn.Module, width: int, reduction: int) -> None:
        """Append a stage whose output has `width` channels and 1 / `reduction` of the images' height and width."""
        name = f"stage{len(self.feature_info) + 1}"
        self.add_module(name, stage)
        self.feature_info.append({"num_chs": width, "reduction": reduction, "module": name})

    def run_stages(self, x: Tensor) -> Tensor:
        """Apply all stages in order."""
        for entry in self.feature_info:
            x = self.get_submodule(entry["module"])(x)
        return x

    def finish(self, width: int, num_classes: int) -> None:
        """Add the classifier, then initialise all weights by He et al.'s normal distribution (fan in), biases by 0."""
        self.num_features = self.head_hidden_size = width
        self.num_classes = num_classes
        self.fc = self._classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The classifier: the last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: number of logits; 0 removes the classifier.
            global_pool: None or `avg`.

        Raises:
            ValueError: another kind of pooling.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool {global_pool!r} is not 'avg'")
        self.num_classes = num_classes
        self.fc = self._classifier(num_classes).to(next(self.parameters()).device)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to feature maps [B, F, H / 4, W / 4]."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps to the logits [B, num_classes], or with `pre_logits` to the pooled feature [B, F]."""
        feature = x.mean(dim=(2, 3))
        if pre_logits:
            return feature
        logits: Tensor = self.fc(feature)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))
