"""Networks by their timm name."""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from . import models  # noqa: F401 - registers the paper's networks in timm
from .errors import UsageError


def check_arch(name: str) -> None:
    """Accept names in timm's registry and nothing else: a name with a scheme would read files or the network.

    Raises:
        UsageError: with the closest known names.
    """
    if timm.is_model(name) and name.isascii() and name.replace("_", "").isalnum():
        return
    close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
    remedy = f"the closest are {', '.join(close)}" if close else "name an architecture of timm"
    raise UsageError("arch", f"{name!r} is not in timm's registry", remedy)


def build_network(
    name: str, model_args: Mapping[str, Any], classes: int, channels: int, seed: int, device: torch.device
) -> nn.Module:
    """A network with fresh weights.

    Args:
        name: in timm's registry.
        model_args: further arguments of its constructor.
        classes: number of logits.
        channels: of the images.
        seed: of the weights, for torch's global generator.
        device: where it shall live. The weights are drawn on the CPU, so they do not depend on it.

    Raises:
        UsageError: unknown name, or arguments that the constructor does not take.
    """
    check_arch(name)
    torch.manual_seed(seed)
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=channels, **model_args
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as problem:
        reason = str(problem).split("\n")[0] or type(problem).__name__
        raise UsageError(f"network {name}", f"cannot be built: {reason}", "check --model-arg") from None
    return network.to(device)
