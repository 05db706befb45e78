"""Write a trained network to a file that describes itself."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from ..bundle.manifest_base import first_problem
from ..config import RunConfig
from ..config.choices import untagged
from ..data.splits import DataSplits
from ..errors import UsageError
from ..models.factory import unique_tensors
from ..policy.policy_bundle import to_raw
from ..runtime.files import write_atomically
from ..runtime.machine import versions
from .build import blank_network
from .network_config import CROP_MODES, FORMAT, NetworkConfig
from .network_file import network_bytes


def describe_network(
    config: RunConfig, splits: DataSplits, network: nn.Module, bundle: str | None = None
) -> NetworkConfig:
    """What a network file says of a run's network.

    Args:
        config: of the run.
        splits: its data set.
        network: a network of timm's kind that the run trains.
        bundle: digest of the policy that it is trained with.

    Raises:
        UsageError: a file cannot say this; one line names the field.
    """
    known: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    images, classes = splits.reading.to_dict(), len(splits.classes)
    arguments = {**config.model_args, "num_classes": classes, "in_chans": splits.channels}
    fixed_size = bool(known.get("fixed_input_size", False))
    if fixed_size:
        arguments.setdefault("img_size", splits.image_size)  # a tag may have another size than its name alone
    try:
        return NetworkConfig.model_validate(
            {
                "architecture": untagged(config.network),  # a tag names other weights than the file's
                "num_classes": classes,
                "label_names": splits.classes,
                "model_args": arguments,
                "pretrained_cfg": {
                    "input_size": (splits.channels, splits.image_size, splits.image_size),
                    "fixed_input_size": fixed_size,
                    "interpolation": images["interpolation"],
                    "crop_pct": images["share"],
                    "crop_mode": CROP_MODES[images["resize"]],
                    "mean": splits.mean,
                    "std": splits.std,
                    "num_classes": classes,
                    "first_conv": known.get("first_conv"),
                    "classifier": known.get("classifier"),
                },
                "mapolicy": {
                    "format": FORMAT,
                    "versions": versions(),
                    "stage": config.stage,
                    "images": images,
                    "dataset": {
                        "name": splits.name,
                        "images": splits.pool_size,
                        "split_seed": config.split_seed,
                        "test_per_class": config.test_per_class,
                        "learned": splits.sketch or None,
                    },
                    "bundle": bundle,
                },
            }
        )
    except ValidationError as problem:
        why = first_problem(problem).replace("manifest", "its description", 1)
        raise UsageError("network.safetensors", f"cannot be written: {why}", "rename it or leave it out") from None


def check_savable(config: RunConfig, splits: DataSplits, network: nn.Module) -> None:
    """Check before a run that its network can be saved, and that the file's description gives the same network.

    Raises:
        UsageError: it cannot.
    """
    rebuilt = unique_tensors(blank_network(describe_network(config, splits, network)))
    own = unique_tensors(network)
    odd = sorted(name for name in own.keys() | rebuilt.keys() if _shape(own, name) != _shape(rebuilt, name))
    if odd:
        why = f"cannot be saved: built again from its name and arguments it has another {odd[0]}"
        raise UsageError(f"network {config.network}", why, "use another arch")


def save_network(path: Path, network: nn.Module, description: NetworkConfig) -> None:
    """Write a network file. Equal networks give equal bytes.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    tensors = {name: to_raw(tensor) for name, tensor in unique_tensors(network).items()}
    write_atomically(path, network_bytes(description, tensors))


def _shape(tensors: dict[str, Any], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
