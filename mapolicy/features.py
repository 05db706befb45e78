"""Features and logits of any timm model in one forward."""

import torch
from torch import Tensor, nn

from .errors import UsageError


def features_and_logits(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The deep feature [B, F] and the logits [B, classes] of normalised images [B, C, H, W].

    The feature is what timm calls pre-logits: the input of the last linear layer. Networks whose classifier is no
    single linear layer compute their head a second time; it is the body that costs.
    """
    maps = network.forward_features(images)  # type: ignore[operator]
    features = network.forward_head(maps, pre_logits=True)  # type: ignore[operator]
    classifier = network.get_classifier()  # type: ignore[operator]
    logits = classifier(features) if isinstance(classifier, nn.Linear) else network.forward_head(maps)  # type: ignore[operator]
    return features, logits


def feature_width(network: nn.Module, image_size: int, channels: int) -> int:
    """Width of the network's deep feature, found by one forward of two blank images.

    Raises:
        UsageError: the network does not take images of this size, or its logits are not those of its own head.
    """
    name = type(network).__name__
    training = network.training
    device = next(network.parameters()).device
    images = torch.linspace(-1, 1, 2 * channels * image_size**2, device=device)
    images = images.reshape(2, channels, image_size, image_size)
    network.eval()
    try:
        with torch.no_grad():
            features, logits = features_and_logits(network, images)
            matches = torch.allclose(logits, network(images), rtol=1e-3, atol=1e-4)
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as problem:
        reason = str(problem).strip().split("\n")[0] or type(problem).__name__
        raise UsageError(
            f"network {name}",
            f"does not take {channels} x {image_size} x {image_size} images ({reason})",
            "try --model-arg img_size=..., another image_size or another arch",
        ) from None
    finally:
        network.train(training)
    if features.ndim != 2 or not matches:
        raise UsageError(f"network {name}", "has no single feature that its logits follow from", "use another arch")
    return features.shape[1]
