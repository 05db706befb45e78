"""A network from its file: the architecture is checked without weights, on the meta device, before it is built."""

import torch
from torch import Tensor, nn

from ..bundle.manifest_fields import check_model_args
from ..errors import UsageError
from ..models.factory import build_network, unique_tensors
from ..policy.policy_bundle import to_torch
from ..runtime.sanitize import escaped, invalid_bundle, quoted
from .network_config import NetworkConfig
from .network_file import NetworkFile

TRUST = "if you trust its sender, add --trust-arguments (in Python: trust_arguments=True)"


def built_network(file: NetworkFile, trust_arguments: bool = False) -> nn.Module:
    """The network of a file with its weights: on the CPU, in evaluation mode, without gradients.

    Args:
        file: as `read_network_file` returned it.
        trust_arguments: accept arguments of the constructor that are not in `manifest_fields.MODEL_ARGS`.

    Raises:
        InputError: the architecture is not known, does not take the arguments, is too large, or has other tensors; or
            the network does not take images of its size, or gives logits that are not finite.
    """
    check_network(file, trust_arguments)
    network = _blank(file.config, torch.device("cpu"), file.source)
    # Not strict: of tensors that share memory, the file has one.
    network.load_state_dict({name: to_torch(tensor) for name, tensor in file.tensors.items()}, strict=False)
    network.eval().requires_grad_(False)
    _probe(network, file)
    return network


def check_network(file: NetworkFile, trust_arguments: bool = False) -> None:
    """Check a file's tensors against its architecture, without memory for the weights; arguments as `built_network`.

    Raises:
        InputError: they differ, or the architecture cannot be built or is too large.
    """
    config, source = file.config, file.source
    if not trust_arguments:
        try:
            check_model_args(config.arguments)
        except ValueError as problem:
            raise invalid_bundle(source, f"model_args: {problem}", TRUST) from None
    network = _blank(config, torch.device("meta"), source)
    size = sum(tensor.numel() for part in (network.parameters(), network.buffers()) for tensor in part)
    if size > file.limits.parameters:
        why = f"{config.architecture} has {size} parameters, more than the {file.limits.parameters} allowed"
        raise invalid_bundle(source, why, file.limits.how_to_raise("parameters", size))
    _check_tensors(network, file)


def blank_network(config: NetworkConfig) -> nn.Module:
    """The network that a description names, on the meta device, without weights.

    Raises:
        InputError: it cannot be built.
    """
    return _blank(config, torch.device("meta"), "network file")


def _blank(config: NetworkConfig, device: torch.device, source: str) -> nn.Module:
    """The network with arbitrary weights; the global generator's state is kept."""
    arch = config.architecture
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return build_network(arch, config.arguments, config.num_classes, config.channels, 0, device)
    except UsageError as problem:
        why = f"architecture {escaped(problem.why, 120)}"
        raise invalid_bundle(source, why, "install the mapolicy and timm that wrote it") from None
    except Exception as problem:  # timm's constructors fail in any way on arguments they were not written for
        raise invalid_bundle(source, f"architecture {arch} cannot be built: {escaped(str(problem), 60)}") from None


def _check_tensors(network: nn.Module, file: NetworkFile) -> None:
    arch, source, expected = file.config.architecture, file.source, unique_tensors(network)
    for name in sorted(expected.keys() | file.tensors.keys()):
        if name not in file.tensors:
            raise invalid_bundle(source, f"tensor {quoted(name)} of {arch} is missing")
        if name not in expected:
            raise invalid_bundle(source, f"tensor {quoted(name)} is not one of {arch}")
        found, shape = file.tensors[name], tuple(expected[name].shape)
        if found.shape != shape:
            why = f"tensor {quoted(name)} has shape {escaped(str(found.shape), 32)}, expected {shape}"
            raise invalid_bundle(source, why)
        if (found.dtype != "I64") != expected[name].is_floating_point():
            raise invalid_bundle(source, f"tensor {quoted(name)} has dtype {found.dtype}, {arch} has another kind")


def _probe(network: nn.Module, file: NetworkFile) -> None:
    """A black and a white image: finite weights may still give logits that are not finite."""
    config = file.config
    pixels = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, *config.pretrained_cfg.input_size)
    about = config.pretrained_cfg
    mean, std = (torch.tensor(values)[:, None, None] for values in (about.mean, about.std))
    try:
        with torch.inference_mode():
            logits = network((pixels - mean) / std)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as problem:
        reason = escaped(str(problem).strip().split("\n")[0], 60)
        size = " x ".join(map(str, config.pretrained_cfg.input_size))
        raise invalid_bundle(file.source, f"{config.architecture} does not take {size} images ({reason})") from None
    if not isinstance(logits, Tensor) or logits.shape != (2, config.num_classes):
        raise invalid_bundle(file.source, f"{config.architecture} does not give {config.num_classes} logits")
    if not bool(logits.isfinite().all()):
        raise invalid_bundle(file.source, f"{config.architecture} gives plain images logits that are not finite")
