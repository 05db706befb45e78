"""A bundle's extractor: a named architecture, checked against the file before it is built.

An architecture is first built on the meta device, without memory; then its parameters and buffers are counted, and the
file's tensors compared with it. What only a forward shows is tested with two plain images.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..bundle.format import ALPHA, EXTRACTOR_PREFIX
from ..bundle.limits import Limits
from ..bundle.manifest import Extractor, Manifest
from ..bundle.safetensors_reader import RawTensor
from ..errors import UsageError
from ..models.factory import build_network
from ..models.features import deep_features
from ..runtime.sanitize import escaped, invalid_bundle, quoted

# Larger features could overflow in the policy network's products (`format.MAX_POLICY`).
MAX_FEATURE = 1e12


def check_extractor(
    extractor: Extractor, classes: int, channels: int, source: str, limits: Limits | None = None
) -> nn.Module:
    """Build the extractor without weights (on the meta device) and check that a bundle may hold its arch and arguments.

    A search calls this at its start, so that it cannot end with a bundle that does not load.

    Args:
        extractor: arch, arguments and feature width.
        classes: logits of the proxy.
        channels: of the images.
        source: whose extractor it is, for the error.
        limits: of its parameters; None takes the default ones, and the error does not suggest raising them.

    Raises:
        InputError: the arch is not in timm's registry, does not take the arguments, has too many parameters, no
            features, or features of another width.
    """
    network = fresh_extractor(extractor, classes, channels, torch.device("meta"), source)
    # Buffers too: tables of relative positions grow with the fourth power of a window, and need not be in the file.
    size = sum(tensor.numel() for part in (network.parameters(), network.buffers()) for tensor in part)
    allowed = (limits or Limits()).parameters
    if size > allowed:
        why = f"extractor.arch {extractor.arch} has {size} parameters, more than the {allowed} allowed"
        raise invalid_bundle(
            source, why, limits.how_to_raise("parameters", size) if limits else "search with a smaller proxy"
        )
    width = getattr(network, "head_hidden_size", None) or getattr(network, "num_features", None)
    if width is None or not hasattr(network, "forward_head"):
        raise invalid_bundle(source, f"extractor.arch {extractor.arch} has no features", "search with another proxy")
    if width != extractor.feature_width:
        raise invalid_bundle(
            source, f"extractor.feature_width is {extractor.feature_width}, {extractor.arch} has {width}"
        )
    return network


def fresh_extractor(extractor: Extractor, classes: int, channels: int, device: torch.device, source: str) -> nn.Module:
    """Build the extractor's network with arbitrary weights; the global generator's state is kept.

    Args:
        extractor: arch and arguments.
        classes: logits of the proxy.
        channels: of the images.
        device: where it is built; the meta device takes no memory.
        source: whose extractor it is, for the error.

    Raises:
        InputError: the arch is not known, or does not take the arguments.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return build_network(extractor.arch, extractor.model_args, classes, channels, seed=0, device=device)
    except UsageError as problem:
        # A name that is not known is said in the reason.
        named = "" if problem.what == "arch" else f"{extractor.arch} "
        why = f"extractor.arch {named}{escaped(problem.why, 120)}"
        raise invalid_bundle(source, why, "install the mapolicy and timm that wrote it") from None
    except Exception as problem:  # timm's constructors fail in any way on arguments they were not written for
        raise invalid_bundle(
            source, f"extractor.arch {extractor.arch} cannot be built: {escaped(str(problem), 60)}"
        ) from None


def classifier_tensors(network: nn.Module) -> frozenset[str]:
    """Names, in a bundle, of the layers that timm calls the classifier (two of them in distilled networks)."""
    found: Any = getattr(network, "get_classifier", tuple)()
    layers = found if isinstance(found, tuple | list) else (found,)
    prefixes = tuple(f"{name}." for name, module in network.named_modules() if any(module is part for part in layers))
    return frozenset(f"{EXTRACTOR_PREFIX}{name}" for name in network.state_dict() if name.startswith(prefixes))


def probe_extractor(manifest: Manifest, network: nn.Module, source: str) -> None:
    """Run the extractor on a black and a white image: finite weights may still give features that are not finite.

    Args:
        manifest: of its bundle.
        network: with the bundle's weights, on the CPU, in evaluation mode.
        source: the bundle's name, for the error.

    Raises:
        InputError: it does not take images of the bundle's size, or its features are not finite or of another width.
    """
    arch, shape = manifest.extractor.arch, (manifest.input.channels, manifest.input.size, manifest.input.size)
    pixels = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, *shape)
    mean, std = (torch.tensor(values)[:, None, None] for values in (manifest.input.mean, manifest.input.std))
    try:
        with torch.no_grad():
            features = deep_features(network, (pixels - mean) / std)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as problem:
        reason = escaped(str(problem).strip().split("\n")[0], 60)
        raise invalid_bundle(
            source, f"extractor.arch {arch} does not take images of input.size {shape} ({reason})"
        ) from None
    if features.shape != (2, manifest.extractor.feature_width):
        why = f"extractor.feature_width is {manifest.extractor.feature_width}, {arch} gives {tuple(features.shape[1:])}"
        raise invalid_bundle(source, why)
    largest = float(features.abs().max())  # NaN where there is one
    if not largest <= MAX_FEATURE:
        why = f"extractor.arch {arch} gives plain images a feature of {largest:g}, expected at most {MAX_FEATURE:g}"
        raise invalid_bundle(source, why)


def check_architecture(manifest: Manifest, raw: Mapping[str, RawTensor], source: str, limits: Limits) -> None:
    """Check the extractor's tensors against its arch; a per-layer alpha must have a number for each parameter tensor.

    Args:
        manifest, raw: as `format.read_bundle` returned them.
        source: the bundle's name, for the error.
        limits: of the extractor's parameters.

    Raises:
        InputError: they differ.
    """
    classes, channels = len(manifest.dataset.classes), manifest.input.channels
    network = check_extractor(manifest.extractor, classes, channels, source, limits)
    expected = {f"{EXTRACTOR_PREFIX}{name}": tensor for name, tensor in network.state_dict().items()}
    found = {name: tensor for name, tensor in raw.items() if name.startswith(EXTRACTOR_PREFIX)}
    classifier = classifier_tensors(network)
    if not classifier & found.keys():
        expected = {name: tensor for name, tensor in expected.items() if name not in classifier}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise invalid_bundle(source, f"tensor {quoted(name)} of {manifest.extractor.arch} is missing")
        if name not in expected:
            raise invalid_bundle(source, f"tensor {quoted(name)} is not one of {manifest.extractor.arch}")
        shape = tuple(expected[name].shape)
        if found[name].shape != shape:
            raise invalid_bundle(
                source, f"tensor {quoted(name)} has shape {escaped(str(found[name].shape), 32)}, expected {shape}"
            )
        if (found[name].dtype != "I64") != expected[name].is_floating_point():
            raise invalid_bundle(
                source,
                f"tensor {quoted(name)} has dtype {found[name].dtype}, {manifest.extractor.arch} has another kind",
            )
    layers = sum(1 for _ in network.parameters())
    if manifest.alpha == "per-layer" and raw[ALPHA].shape != (layers,):
        raise invalid_bundle(
            source, f"alpha has {raw[ALPHA].shape[0]} numbers, expected {layers} (parameter tensors of the extractor)"
        )
