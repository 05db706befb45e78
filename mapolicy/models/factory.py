"""Build networks by their name in timm's registry."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import get_arch_pretrained_cfgs
from torch import Tensor, nn

from .. import models
from ..config.choices import SHORT_NAMES, untagged
from ..errors import UsageError

LONGEST_NAME = 80  # characters of an unknown name in an error
LISTED_TAGS = 5

# What to use instead of an argument of `timm.create_model` that names weights.
INSTEAD = {"pretrained": "use --pretrained", "checkpoint_path": "use --weights FILE"}

# `timm.create_model` takes these arguments for itself: they name weights, files and folders, or are set here.
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
    """A network that can be built by name.

    Attributes:
        name: in timm's registry, or a short name (`config.SHORT_NAMES`).
        description: one line.
        image_size: side in pixels of the images that it was designed for.
        fixed_size: whether other sizes need the argument `img_size`.
        tags: of its pretrained weights; `NAME.TAG` is a name too.
    """

    name: str
    description: str
    image_size: int
    fixed_size: bool
    tags: tuple[str, ...] = ()


def known_archs(word: str | None = None) -> list[Arch]:
    """All networks that can be built by name.

    Args:
        word: a name to search for. A wide residual network with this name is included, whatever its depth and width.
    """
    models.wide_resnet.register((word or "").lower())
    tags: dict[str, list[str]] = {}
    for name in timm.list_pretrained():
        tags.setdefault(untagged(name), []).append(name.partition(".")[2])
    found = []
    for name in sorted([*timm.list_models(), *SHORT_NAMES]):
        full = SHORT_NAMES.get(name, name)
        settings = timm.get_pretrained_cfg(full)
        assert settings is not None, full  # timm has a configuration for each name that it lists
        text = " ".join((timm.model_entrypoint(full).__doc__ or "").split("\n")[0].split()).rstrip(".")
        size, fixed = settings.input_size[-1], bool(settings.fixed_input_size)
        parts = [f"is {full}" if full != name else "", text, f"for {size} pixels{', others by img_size' * fixed}"]
        own = tuple(tags.get(full, ()))
        if own:
            parts.append(f"pretrained as {', '.join(own[:LISTED_TAGS])}{' and others' * (len(own) > LISTED_TAGS)}")
        found.append(Arch(name, "; ".join(filter(None, parts)), size, fixed, own))
    return found


def check_arch(name: str) -> None:
    """Check that a name, or NAME.TAG, is in timm's registry; timm would open what a name with a scheme names.

    A wide residual network of any depth and width is registered here at the first use of its name.

    Raises:
        UsageError: the name is unknown; the message lists the closest names.
    """
    models.wide_resnet.register(name)
    arch, _, tag = name.partition(".")
    if timm.is_model(arch) and arch.isascii() and arch.replace("_", "").isalnum():
        known = get_arch_pretrained_cfgs(arch)
        if name == arch or (tag and name in known):
            return
        tags = [each.partition(".")[2] for each in known][:LISTED_TAGS]
        raise UsageError(
            "arch", f"{name[:LONGEST_NAME]!r} is not in timm's registry", f"its tags are {', '.join(tags)}"
        )
    close = difflib.get_close_matches(name.lower()[:LONGEST_NAME], timm.list_models(), n=3, cutoff=0.0)
    remedy = f"the closest are {', '.join(close)}"
    if models.wide_resnet.NAME.fullmatch(name):
        remedy += "; the depth of a wide residual network is 6n + 4"
    raise UsageError("arch", f"{name[:LONGEST_NAME]!r} is not in timm's registry", remedy)


def build_network(
    name: str, model_args: Mapping[str, Any], classes: int, channels: int, seed: int, device: torch.device
) -> nn.Module:
    """Build a network with random weights, in channels-last memory format, which makes convolutions faster.

    Args:
        name: in timm's registry; a tag chooses the defaults of its weights and loads nothing.
        model_args: further arguments of its constructor.
        classes: number of logits.
        channels: of the images.
        seed: of the weights; sets torch's global generator of the CPU.
        device: device of the network. The weights do not depend on it, because they are drawn on the CPU.

    Raises:
        UsageError: the name is unknown, or the constructor does not accept the arguments.
    """
    check_arch(name)
    for argument in RESERVED_ARGUMENTS & set(model_args):
        why = f"cannot be built: {argument} is not an argument of the network"
        raise UsageError(f"network {name}", why, INSTEAD.get(argument, "check --model-arg"))
    # Not torch.manual_seed, which would also seed the CUDA devices in the middle of a caller's run.
    torch.default_generator.manual_seed(seed)
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=channels, **model_args
        )
    except MemoryError:
        raise
    except Exception as problem:
        # With unexpected arguments constructors raise exceptions of any kind, such as ZeroDivisionError or KeyError.
        reason = str(problem).split("\n")[0] or type(problem).__name__
        raise UsageError(f"network {name}", f"cannot be built: {reason}", "check --model-arg") from None
    return network.to(device).to(memory_format=torch.channels_last)


def unique_tensors(network: nn.Module) -> dict[str, Tensor]:
    """A network's state by name, on its device and without copies; a tensor with several names is there once.

    `safetensors.torch.load_model` gives such a tensor all its names back.
    """
    named = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}  # torch gives each once
    return {name: tensor.detach() for name, tensor in network.state_dict().items() if name in named}
