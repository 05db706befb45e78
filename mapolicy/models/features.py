"""Features and logits of any timm model from one forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UsageError


def features_and_logits(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The deep feature [B, F], detached, and the logits [B, classes] of normalised images [B, C, H, W].

    The feature is timm's pre-logits. The logits equal those of `network(images)`, including noise and the update of
    running statistics, although a head may have dropout or normalisation. The feature comes from a second pass of the
    small head over the same maps, which draws its noise after the logits' and does not update running statistics.
    """
    maps = feature_maps(network, images)
    logits = head(network, maps)
    with torch.no_grad(), running_statistics_kept(network):
        features = head(network, maps, pre_logits=True)
    return features, logits


def deep_features(network: nn.Module, images: Tensor) -> Tensor:
    """The deep feature [B, F] of normalised images [B, C, H, W]."""
    return head(network, feature_maps(network, images), pre_logits=True)


def feature_maps(network: nn.Module, images: Tensor) -> Tensor:
    """The output of a timm model's body for normalised images [B, C, H, W]."""
    maps: Tensor = network.forward_features(images)  # type: ignore[operator] # timm's models are typed as modules
    return maps


def head(network: nn.Module, maps: Tensor, pre_logits: bool = False) -> Tensor:
    """The output of a timm model's head for feature maps: logits [B, classes], or with `pre_logits` features [B, F]."""
    result: Tensor = network.forward_head(maps, pre_logits=pre_logits)  # type: ignore[operator] # likewise
    return result


def last_map(network: nn.Module, image_size: int, channels: int) -> tuple[int, int] | None:
    """Height and width of a timm model's last feature map; None for a network whose features are no map."""
    training, device = network.training, next(network.parameters()).device
    try:
        with torch.no_grad():
            maps = feature_maps(network.eval(), torch.zeros(1, channels, image_size, image_size, device=device))
    finally:
        network.train(training)
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        return None
    sides = maps.shape[1:3] if getattr(network, "output_fmt", "NCHW") == "NHWC" else maps.shape[2:4]
    return sides[0], sides[1]


def _other_size(network: nn.Module, image_size: int) -> str:
    """What to type where a network does not take images of a size: the size that it was designed for."""
    about = getattr(network, "pretrained_cfg", None) or {}
    built_for = getattr(getattr(network, "patch_embed", None), "img_size", None)  # by --model-arg img_size
    designed = built_for[0] if isinstance(built_for, tuple) else (about.get("input_size") or (0, 0, 0))[-1]
    fits = [f"--image-size {designed}"] if designed and designed != image_size else []
    if about.get("fixed_input_size"):
        fits.append(f"--model-arg img_size={image_size}")
    return f"use {' or '.join(fits)}, or another network" if fits else "use another --image-size or another network"


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Inside the block normalisation layers in training mode do not update their running statistics."""
    name = "track_running_stats"
    layers = [module for module in network.modules() if getattr(module, name, False) and module.training]
    for layer in layers:
        setattr(layer, name, False)
    try:
        yield
    finally:
        for layer in layers:
            setattr(layer, name, True)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """The running means and variances of the network's normalisation layers, without their counts of batches."""
    layers = [module for module in network.modules() if getattr(module, "track_running_stats", False)]
    return [buffer for layer in layers for buffer in layer.buffers(recurse=False) if buffer.is_floating_point()]


def feature_width(network: nn.Module, image_size: int, channels: int) -> int:
    """Width F of the network's deep feature, found by forward passes of two images that leave the network unchanged.

    Raises:
        UsageError: the network does not take images of this size, or its `forward` differs from its `forward_head` of
            its `forward_features`.
    """
    name = type(network).__name__
    training = network.training
    device = next(network.parameters()).device
    images = torch.linspace(-1, 1, 2 * channels * image_size**2, device=device)
    images = images.reshape(2, channels, image_size, image_size)
    devices = [device] if device.type == "cuda" else []
    matches = True
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices), running_statistics_kept(network.train()):
            for mode in (True, False):
                network.train(mode)
                torch.manual_seed(0)
                features, logits = features_and_logits(network, images)
                torch.manual_seed(0)
                matches = matches and torch.allclose(logits, network(images), rtol=1e-3, atol=1e-4)
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as problem:
        reason = str(problem).strip().split("\n")[0] or type(problem).__name__
        why = f"does not take {channels} x {image_size} x {image_size} images ({reason})"
        raise UsageError(f"network {name}", why, _other_size(network, image_size)) from None
    finally:
        network.train(training)
    if features.ndim != 2 or not matches:
        raise UsageError(f"network {name}", "has no single feature that its logits follow from", "use another arch")
    return features.shape[1]
