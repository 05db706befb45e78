"""What the networks for small images have in common: timm's feature contract, and how they are initialised."""

from collections.abc import Mapping
from typing import Any

from timm.models import generate_default_cfgs
from torch import Tensor, nn

SMALL_IMAGES = {"input_size": (3, 32, 32), "num_classes": 10, "first_conv": "conv1", "classifier": "fc", "url": ""}


def untrained_cfgs(*names: str) -> Mapping[str, Any]:
    """timm's description of networks for 32x32 images that there are no weights of."""
    # timm asks for a tag where weights come from; there are none.
    configurations: Mapping[str, Any] = generate_default_cfgs({f"{name}.untrained": SMALL_IMAGES for name in names})
    return configurations


class PooledNetwork(nn.Module):
    """A network whose feature is the mean over the last feature maps and whose classifier is one linear layer.

    Whoever derives from it builds the layers, calls `finish`, and writes `forward_features`.

    Attributes:
        num_classes: logits; 0 where there is no classifier.
        num_features, head_hidden_size: width of the feature.
        feature_info: the stages, as timm describes them.
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
        """Append a stage; its output has `width` channels, and `reduction` times fewer rows than the images."""
        name = f"stage{len(self.feature_info) + 1}"
        self.add_module(name, stage)
        self.feature_info.append({"num_chs": width, "reduction": reduction, "module": name})

    def run_stages(self, x: Tensor) -> Tensor:
        """Through all stages, in order."""
        for entry in self.feature_info:
            x = self.get_submodule(entry["module"])(x)
        return x

    def finish(self, width: int, num_classes: int) -> None:
        """Add the classifier and draw all weights: He et al.'s normal distribution by the number of inputs."""
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
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer for another number of classes; only average pooling is known."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool {global_pool!r} is not 'avg'")
        self.num_classes = num_classes
        self.fc = self._classifier(num_classes).to(next(self.parameters()).device)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to feature maps [B, F, H / 4, W / 4]; each family writes its own."""
        raise NotImplementedError

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
