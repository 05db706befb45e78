"""Weights that a network starts from: timm's pretrained ones, or a safetensors file. Only the user's word loads them.

timm converts them where the classes, the channels or the size of the images are others. Nothing is unpickled.
"""

import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from timm.data import resolve_data_config
from timm.models import clean_state_dict, get_pretrained_cfg, load_pretrained
from torch import Tensor, nn

from ..config import RunConfig
from ..config.choices import INTERPOLATIONS
from ..errors import EnvironmentFault, InputError, UsageError
from ..runtime.files import NETWORK_FILE, PICKLES, read_regular_file
from ..runtime.sanitize import printable

HUB_FILE = "model.safetensors"
BUNDLE_KEY = "mapolicy"  # of the metadata that every bundle has and no file of weights
# A text that an error shows, for users to run on their own files; nothing here opens a pickle. Short, so that the
# error's one line has room for it. Checkpoints of training frameworks hold more than the network.
CONVERSION = (
    'import sys,torch,safetensors.torch as s;d=torch.load(sys.argv[1],"cpu",weights_only=True);'
    's.save_file(d.get("state_dict",d.get("model",d)),sys.argv[2])'
)
LONGEST_PATH = 160  # of a file, in the command that converts it
NOWHERE_ELSE = {"source": "", "hf_hub_id": None, "url": None, "file": None}  # where timm would look for weights
LARGEST_FILE = 64 * 2**30
LISTED = 4  # tensors in a message
MOST_MISSING = 0.5  # of a network's tensors; with more the weights are another network's


@dataclass(frozen=True)
class StartWeights:
    """Weights as they were read.

    Attributes:
        origin: name or path, for people.
        digest: SHA-256 of the file.
        tensors: by name.
        classes: names of the logits' classes, where the file has them.
        value_range: of images with more than 8 bits a pixel that they were trained on, where the file has one.
    """

    origin: str
    digest: str
    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class NetworkInput:
    """The input that pretrained weights were trained on: side in pixels, mean and deviation in [0, 1], interpolation.

    Attributes:
        size: side of the images in pixels.
        interpolation: of the resizing, such as `bicubic`.
        mean, std: for each channel.
    """

    size: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of_channels(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation for images of so many channels; grey images have the average of the colours'."""
        if len(self.mean) == channels:
            return self.mean, self.std
        return (sum(self.mean) / len(self.mean),) * channels, (sum(self.std) / len(self.std),) * channels


def start_weights(config: RunConfig) -> StartWeights | None:
    """The weights that a configuration names; None where the network starts from random ones.

    Raises:
        UsageError: the network has no pretrained weights, or the file is a pickle.
        InputError: the file cannot be read, or holds numbers that are not finite.
        EnvironmentFault: the weights are not in the cache and cannot be downloaded.
    """
    if config.weights:
        path, origin = Path(config.weights), config.weights
        _check_suffix(path)
        _metadata(config.weights)  # says what else the file is
    elif config.pretrained:
        path, origin = _from_hub(config.network)
    else:
        return None
    content = read_regular_file(path, LARGEST_FILE)
    try:
        tensors = load(content)
    except SafetensorError as problem:
        why = f"is not a safetensors file ({str(problem).splitlines()[0]})"
        raise InputError(origin, why, "name a file that safetensors.torch.save_file wrote") from None
    if not tensors:
        raise InputError(origin, "holds no tensors", "name a file with a network's weights")
    _check_finite(origin, tensors)
    digest = hashlib.sha256(content).hexdigest()
    classes, values = _told_by_file(str(path)) if config.weights else ((), None)
    return StartWeights(origin, digest, clean_state_dict(tensors), classes, values)


def _check_finite(origin: str, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            why = f"holds numbers that are not finite (NaN or infinite), in {printable(name)}"
            raise InputError(origin, why, "name a file of a training that did not diverge")


def network_input(config: RunConfig) -> NetworkInput | None:
    """The input that the configuration's start weights were trained on; None without weights that say so.

    A safetensors file may say it in its metadata (timm's `pretrained_cfg` as JSON, as a run's network file does);
    otherwise it is what timm knows of the network's weights.

    Raises:
        InputError: the file cannot be read.
    """
    found = get_pretrained_cfg(config.network)
    known = {} if found is None or not found.has_weights else found.to_dict()
    if config.weights:
        _check_suffix(Path(config.weights))
        known |= _said_by(config.weights)
    elif not config.pretrained:
        return None
    if not known:
        return None
    data = resolve_data_config(pretrained_cfg=known)
    mean, std = (tuple(map(float, data[name])) for name in ("mean", "std"))
    interpolation = data["interpolation"] if data["interpolation"] in INTERPOLATIONS else "bicubic"  # timm's default
    return NetworkInput(int(data["input_size"][-1]), interpolation, mean, std)


def normalisation_of(config: RunConfig, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation that come with the weights, by the setting `normalisation`; None takes the data's.

    Raises:
        UsageError: the network's are asked for, and nothing says them.
        InputError: as `network_input`.
    """
    if config.normalisation == "data" or (config.normalisation == "auto" and not (config.pretrained or config.weights)):
        return None
    own = network_input(config)
    if own is None and config.normalisation == "network":
        why = "no weights say which mean and deviation they were trained with"
        raise UsageError("normalisation network", why, "add --pretrained, or use normalisation=data")
    return None if own is None else own.of_channels(channels)


def load_weights(
    network: nn.Module,
    weights: StartWeights,
    name: str,
    classes: int,
    channels: int,
    class_names: Sequence[str] = (),
) -> tuple[str, ...]:
    """Load weights into a network; timm replaces the classifier where the classes are others.

    Args:
        network: built with the same name.
        weights: to load.
        name: of the network, in timm's registry.
        classes: number of its logits.
        channels: of its images.
        class_names: of its logits. Weights that name other ones, or the same ones in another order, lose their
            classifier even if they are as many; without names on either side the number decides.

    Returns:
        What was not loaded, as sentences.

    Raises:
        InputError: the weights are another network's.
    """
    weights = replace(weights, tensors=_without_prefix(weights.tensors, network))
    about = _description(network, weights.tensors, name, classes)
    renamed = bool(weights.classes and class_names) and tuple(class_names) != weights.classes
    missing: list[str] = []
    unused: list[str] = []

    def note(_: nn.Module, result: Any) -> None:
        missing.extend(result.missing_keys)
        unused.extend(result.unexpected_keys)

    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    tensors = dict(weights.tensors)  # timm changes it
    builder = logging.getLogger("timm.models._builder")
    level = builder.level
    builder.setLevel(logging.ERROR)  # it lists all unexpected keys, which `_left_out` tells in short
    hook = network.register_load_state_dict_post_hook(note)
    try:
        load_pretrained(
            network,
            pretrained_cfg=about | NOWHERE_ELSE | {"state_dict": tensors} | ({"num_classes": -1} if renamed else {}),
            num_classes=classes,
            in_chans=channels,
            filter_fn=convert,
            strict=False,
        )
    except (RuntimeError, KeyError, ValueError, AttributeError, AssertionError) as problem:
        lines = [line.strip() for line in str(problem).splitlines()]
        why = f"does not fit {name}: {lines[min(1, len(lines) - 1)]}"
        raise InputError(weights.origin, why, "name the network and the --model-arg that it was trained with") from None
    finally:
        hook.remove()
        builder.setLevel(level)
    return _left_out(network, weights, name, missing, unused, about, class_names if renamed else classes)


def _without_prefix(tensors: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """The tensors without a first name that all have in common, such as `model.`, and that the network does not have.

    Training frameworks store a network as a part of their own module.
    """
    own = {name.partition(".")[0] for name in network.state_dict()}
    while len(first := {name.partition(".")[0] for name in tensors}) == 1 and not first & own:
        if not all("." in name for name in tensors):
            break
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    return tensors


def freeze_body(network: nn.Module) -> None:
    """Fix all parameters but the classifier's; layers of the body with running statistics stay in evaluation mode.

    Raises:
        UsageError: the network has no classifier.
    """
    head = {id(parameter) for part in _classifiers(network) for parameter in part.parameters()}
    if not head:
        raise UsageError("freeze", f"{type(network).__name__} has no classifier that could be trained", "leave it out")
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in head)
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if getattr(module, "track_running_stats", False) and not any(id(parameter) in head for parameter in own):
            module.register_forward_pre_hook(_evaluate)


def _evaluate(module: nn.Module, _: object) -> None:
    # A hook, because `network.train()` is called in every iteration and would switch the layer back.
    module.eval()


def _classifiers(network: nn.Module) -> list[nn.Module]:
    found: Any = getattr(network, "get_classifier", tuple)()
    return [part for part in (found if isinstance(found, tuple | list) else (found,)) if isinstance(part, nn.Module)]


def _from_hub(name: str) -> tuple[Path, str]:
    """The file of timm's weights, from the cache or the network, and what to call it."""
    found = get_pretrained_cfg(name)
    if found is None or not found.hf_hub_id:
        remedy = "use --weights FILE, or another network: `mapolicy archs WORD` lists those with weights"
        raise UsageError("pretrained", f"timm has no pretrained weights of {name}", remedy)
    repository, _, revision = found.hf_hub_id.partition("@")
    try:
        path = _downloaded(repository, revision or None)
    except MemoryError:
        raise
    except Exception as problem:  # the client, its transport and the cache raise exceptions of many kinds
        reason = str(problem).strip().splitlines()[0][:120] if str(problem).strip() else type(problem).__name__
        remedy = f"connect once, or get {HUB_FILE} of {repository} elsewhere and use --weights {HUB_FILE}"
        raise EnvironmentFault(f"weights of {name}", f"cannot be downloaded ({reason})", remedy) from None
    return Path(path), f"{repository}@{revision}" if revision else repository


def _downloaded(repository: str, revision: str | None) -> str:
    """The path of the weights in huggingface_hub's cache; without a connection an error comes at once, not after tries.

    A server that answers with an error is asked again by huggingface_hub, whose warnings are not shown.
    """
    import huggingface_hub as hf
    from huggingface_hub import errors
    from huggingface_hub.utils import logging as hf_logging

    logger = hf_logging.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        cached = hf.try_to_load_from_cache(repository, HUB_FILE, revision=revision)
        if not isinstance(cached, str) and not hf.constants.HF_HUB_OFFLINE:
            with suppress(errors.HfHubHTTPError):
                hf.get_hf_file_metadata(hf.hf_hub_url(repository, HUB_FILE, revision=revision))
        return hf.hf_hub_download(repository, HUB_FILE, revision=revision)
    finally:
        logger.setLevel(level)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        file = str(path)  # a name that an error cannot show whole is the user's to fill in
        shown = file.isascii() and file.isprintable() and "  " not in file and len(file) <= LONGEST_PATH
        names = shlex.join([file if shown else f"FILE{path.suffix}", "weights.safetensors"])
        remedy = f"convert it: python -c {shlex.quote(CONVERSION)} {names}"
        raise UsageError("weights", "the file is a pickle, which could run code", remedy)


def _metadata(path: str) -> Mapping[str, str]:
    """The metadata of a safetensors file of weights.

    Raises:
        InputError: it is none.
    """
    if Path(path).is_dir():
        raise InputError(path, "is a folder", f"name a file, such as --weights {shlex.quote(f'{path}/{NETWORK_FILE}')}")
    if Path(path).exists() and not Path(path).is_file():
        raise InputError(path, "is not a regular file", "name a safetensors file")
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except FileNotFoundError:
        raise InputError(path, "No such file or directory", "check the path") from None
    except (OSError, SafetensorError) as problem:
        why = f"is not a safetensors file ({str(problem).splitlines()[0]})"
        raise InputError(path, why, "name a file that safetensors.torch.save_file wrote") from None
    if BUNDLE_KEY in metadata:
        raise InputError(path, "is a policy's bundle, not a network's weights", f"use --bundle {shlex.quote(path)}")
    return metadata


def _said_by(path: str) -> dict[str, Any]:
    """timm's description of the input in a safetensors file's metadata; nothing where there is none."""
    for text in _metadata(path).values():
        try:
            about = json.loads(text)["pretrained_cfg"]
            numbers = {name: [float(value) for value in about[name]] for name in ("mean", "std")}
            size = [int(value) for value in about["input_size"]]
            interpolation = {"interpolation": str(about["interpolation"])} if "interpolation" in about else {}
        except (ValueError, KeyError, TypeError):
            continue
        if len(size) == 3 and all(len(values) == size[0] for values in numbers.values()):
            return {**numbers, **interpolation, "input_size": size}
    return {}


def _told_by_file(path: str) -> tuple[tuple[str, ...], tuple[float, float] | None]:
    """The names of the classes in a safetensors file's metadata, as timm and mapolicy write them; () without any.

    And the range of the values of images with more than 8 bits, as mapolicy writes it.
    """
    for text in _metadata(path).values():
        try:
            about = json.loads(text)
            names = about["label_names"]
        except (ValueError, KeyError, TypeError):
            continue
        try:
            low, high = map(float, about["mapolicy"]["images"]["value_range"])
            values: tuple[float, float] | None = (low, high)
        except (ValueError, KeyError, TypeError):
            values = None
        if isinstance(names, list):
            return tuple(map(printable, map(str, names))), values
    return (), None


def _description(network: nn.Module, tensors: Mapping[str, Tensor], name: str, classes: int) -> dict[str, Any]:
    """timm's configuration of the network, corrected by the classes and channels that the tensors have."""
    about: dict[str, Any] = dict(getattr(network, "pretrained_cfg", None) or {})
    if not about:
        found = get_pretrained_cfg(name)
        about = {} if found is None else found.to_dict()
    classifier = _names(about.get("classifier"))
    rows = [tensors[f"{layer}.weight"].shape[0] for layer in classifier if f"{layer}.weight" in tensors]
    if rows and rows[0] == classes + about.get("label_offset", 0):
        about["num_classes"] = classes
    elif rows:
        about |= {"num_classes": rows[0], "label_offset": 0}
    channels = [tensors[f"{layer}.weight"].shape[1] for layer in _stems(network, about) if f"{layer}.weight" in tensors]
    if channels:
        about["input_size"] = (channels[0], *tuple(about.get("input_size", (3, 224, 224)))[1:])
    return about


def _stems(network: nn.Module, about: Mapping[str, Any]) -> list[str]:
    """First convolutions whose weights have one column for each channel of the images."""
    named = dict(network.named_modules())
    return [
        layer
        for layer in _names(about.get("first_conv"))
        if isinstance(found := named.get(layer), nn.Conv2d) and found.groups == 1
    ]


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _left_out(
    network: nn.Module,
    weights: StartWeights,
    name: str,
    missing: Sequence[str],
    unused: Sequence[str],
    about: Mapping[str, Any],
    classes: int | Sequence[str],
) -> tuple[str, ...]:
    """What was not loaded, in sentences; `classes` are the data's, by name where the names are others."""
    every = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))
    loaded = {id(tensor) for key, tensor in every.items() if key not in missing}
    absent = [key for key in missing if key in every and id(every[key]) not in loaded]  # under none of its names
    prefixes = tuple(f"{layer}." for layer in _names(about.get("classifier")))
    body = [key for key in absent if not key.startswith(prefixes) and not key.endswith("num_batches_tracked")]
    if len(body) > MOST_MISSING * len(network.state_dict()):
        why = f"is not of {name}: it lacks {_some(body)}"
        raise InputError(weights.origin, why, "name the network that it was trained with")
    told = []
    if any(key.startswith(prefixes) for key in absent):
        if isinstance(classes, int):
            theirs, ours = f"{about.get('num_classes')} classes", str(classes)
        else:
            theirs, ours = f"the classes {_some(weights.classes)}", _some(classes)
        told.append(f"the classifier is new: the weights have {theirs}, the data has {ours}")
    if body:
        told.append(f"start from random values: {_some(body)}")
    unused = [key for key in unused if not key.startswith(prefixes)]
    if unused:
        told.append(f"not used of the weights: {_some(unused)}")
    return tuple(told)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
