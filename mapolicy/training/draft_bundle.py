"""What a search's bundle says about itself: configuration and setup as a manifest before its digest."""

from collections.abc import Mapping
from typing import Any

import torch

from ..bundle import manifest
from ..bundle.manifest_levels import Levels, Verification
from ..config import SearchConfig
from ..config.choices import untagged
from ..models.noise import has_unequal_noise
from ..policy.network import HIDDEN_UNITS
from ..runtime.machine import versions
from .evaluate import Accuracy
from .setup import TrainingSetup


def _circumstances(setup: TrainingSetup) -> dict[str, str | int]:
    """What the bundle records besides the settings: names, a network without a true gradient, processes, weights.

    The number of processes matters because batch statistics and noise are those of each process's part. Weights are
    named for the reader alone: nothing loads them on a bundle's word.
    """
    found: dict[str, str | int] = {"dataset": setup.splits.name, "proxy": untagged(setup.config.network)}
    if has_unequal_noise(setup.network):
        found["hypergradient_noise"] = "mean"
    if setup.weights is not None:
        found |= {"weights_of": setup.config.network, "weights_sha256": setup.weights.digest}
    if setup.communicator.size > 1:
        found["processes"] = setup.communicator.size
    return found


def describe_extractor(config: SearchConfig, setup: TrainingSetup) -> dict[str, Any]:
    """The proxy as the bundle will hold it: fields of `manifest.Extractor`."""
    return {
        "arch": untagged(config.proxy),
        "model_args": config.model_args,
        "feature_width": setup.feature_width,
        "dtype": "float32",
        "call": manifest.EXTRACTOR_CALL,
    }


def describe(
    config: SearchConfig,
    setup: TrainingSetup,
    threads: int,
    device: torch.device,
    accuracy: Accuracy,
    figures: Mapping[str, float] | None = None,
    levels: Levels | None = None,
    verification: Verification | None = None,
) -> manifest.ManifestDraft:
    """What the bundle says about itself.

    Raises:
        UsageError: it cannot say this; one line names the field.
    """
    splits = setup.splits
    # A validation split of the data set's own is taken whole.
    validation_per_class = 0.0 if splits.own_validation else config.validation_per_class
    return manifest.draft_manifest(
        versions=versions(),
        operations=manifest.Operations.of(config.operation_space, config.fill),
        policy={"hidden": HIDDEN_UNITS, "input": config.policy_input},
        alpha=config.alpha,
        extractor=describe_extractor(config, setup),
        input={
            "size": config.image_size,
            "channels": splits.channels,
            "mean": splits.mean,
            "std": splits.std,
            "base_augmentation": config.base_augmentation,
            "cutout": config.cutout,
        },
        dataset={
            "name": splits.name,
            "classes": splits.classes,
            "counts": {
                "images": splits.pool_size,
                "train": len(splits.train) + (0 if splits.aside is None else len(splits.aside)),
                "meta_validation": len(splits.meta_validation),
            },
            "fingerprint": splits.fingerprint,
            "split": {
                "seed": config.split_seed,
                "train_per_class": config.train_per_class,
                "validation_per_class": validation_per_class,
                "test_per_class": config.test_per_class,
            },
        },
        search={
            "settings": config.portable()
            | {"dataset": splits.name, "validation_per_class": validation_per_class}
            | _circumstances(setup)
        },
        run={
            "epochs": config.epochs,
            "iterations": config.epochs * setup.iterations_per_epoch,
            "threads": threads,
            "device": device.type,
        },
        results={f"validation_{name}": value for name, value in vars(accuracy).items()} | dict(figures or {}),
        licence="",
        note="",
        levels=levels,
        verification=verification,
        reading=manifest.Reading.of(splits.reading.to_dict()),
    )
