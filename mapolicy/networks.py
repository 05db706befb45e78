"""Networks by their timm name."""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from . import models
from .errors import UsageError

LONGEST_NAME = 80

# timm takes these from among the arguments for itself: they name weights, files and folders, or what we set.
RESERVED_ARGUMENTS = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "exportable",
        "features_only",
        "in_chans",
        "no_jit",
        "num_classes",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "scriptable",
    }
)


def check_arch(name: str) -> None:
    """Accept names in timm's registry and nothing else: a name with a scheme would read files or the network.

    A wide residual network of any depth and width is registered when its name is first asked for.

    Raises:
        UsageError: with the closest known names.
    """
    models.wide_resnet.register(name)
    if timm.is_model(name) and name.isascii() and name.replace("_", "").isalnum():
        return
    close = difflib.get_close_matches(name.lower()[:LONGEST_NAME], timm.list_models(), n=3, cutoff=0.0)
    remedy = f"the closest are {', '.join(close)}"
    raise UsageError("arch", f"{name[:LONGEST_NAME]!r} is not in timm's registry", remedy)


def build_network(
    name: str, model_args: Mapping[str, Any], classes: int, channels: int, seed: int, device: torch.device
) -> nn.Module:
    """A network with fresh weights, channels-last: faster than torch's own order for convolutions on CPU and CUDA.

    Args:
        name: in timm's registry.
        model_args: further arguments of its constructor.
        classes: number of logits.
        channels: of the images.
        seed: of the weights, for torch's global generator on the CPU.
        device: where it shall live. The weights are drawn on the CPU, so they do not depend on it.

    Raises:
        UsageError: unknown name, or arguments that the constructor does not take.
    """
    check_arch(name)
    for argument in RESERVED_ARGUMENTS & set(model_args):
        why = f"cannot be built: {argument} is not an argument of the network"
        raise UsageError(f"network {name}", why, "check --model-arg")
    # Not torch.manual_seed: that seeds every CUDA device as well, where a caller may be in the middle of a run.
    torch.default_generator.manual_seed(seed)
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=channels, **model_args
        )
    except MemoryError:
        raise
    except Exception as problem:
        # Constructors fail in any way on arguments that they were not written for: ZeroDivisionError, KeyError.
        reason = str(problem).split("\n")[0] or type(problem).__name__
        raise UsageError(f"network {name}", f"cannot be built: {reason}", "check --model-arg") from None
    return network.to(device).to(memory_format=torch.channels_last)
