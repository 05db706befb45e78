"""Networks by their timm name."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from .. import models
from ..config import SHORT_NAMES
from ..errors import UsageError

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


@dataclass(frozen=True)
class Arch:
    """A network that there is.

    Attributes:
        name: in timm's registry, or short for one.
        description: in words.
        image_size: side of the images that it was made for, pixels.
        fixed_size: whether it takes others only by the argument `img_size`.
    """

    name: str
    description: str
    image_size: int
    fixed_size: bool


def known_archs(word: str | None = None) -> list[Arch]:
    """Every network that can be asked for by name.

    Args:
        word: a wide residual network that it names is among them, of whatever depth and width.
    """
    models.wide_resnet.register((word or "").lower())
    found = []
    for name in sorted([*timm.list_models(), *SHORT_NAMES]):
        full = SHORT_NAMES.get(name, name)
        settings = timm.get_pretrained_cfg(full)
        assert settings is not None, full  # every name that timm lists has one
        text = " ".join((timm.model_entrypoint(full).__doc__ or "").split("\n")[0].split()).rstrip(".")
        size, fixed = settings.input_size[-1], bool(settings.fixed_input_size)
        parts = [f"is {full}" if full != name else "", text, f"for {size} pixels{', others by img_size' * fixed}"]
        found.append(Arch(name, "; ".join(filter(None, parts)), size, fixed))
    return found


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
    if models.wide_resnet.NAME.fullmatch(name):
        remedy += "; the depth of a wide residual network is 6n + 4"
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
