"""What is checked before the first training of a comparison, and the caveats that its table must carry."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..bundle.manifest_base import PolicyFile
from ..config import TrainConfig
from ..data.splits import DataSplits, load_splits
from ..errors import InputError, UsageError
from ..models.factory import check_arch
from ..policy.compatibility import FREE_DATA_SETTINGS, DatasetComparison, check_before_download, check_settings
from ..policy.policy_bundle import PolicyBundle
from ..registries import policy_names
from ..runtime.device import reproducible
from ..training.setup import TrainingSetup
from .job import is_proxy
from .policies import short_digest, with_split_of
from .stats import PROXY

BUDGETS = ("equal-epochs", "equal-time")


def baselines() -> tuple[str, ...]:
    """The policies that a learned one can be compared with: the registered ones, and its halves."""
    return tuple(name for name in policy_names() if name != "learned")


def check_arguments(
    bundles: Sequence[PolicyFile],
    configs: Sequence[TrainConfig],
    against: Sequence[str],
    modes: Sequence[str],
    seeds: int,
    budget: str,
    jobs: int,
) -> None:
    """Check what can be checked without opening a file; arguments as in `compare_policies`.

    Raises:
        UsageError: an unknown, repeated or missing name, or a number below 1.
    """
    archs = [config.arch for config in configs]
    digests = [bundle.digest for bundle in bundles]
    for what, names, known in (
        ("against", against, baselines()),
        ("mode", modes, ("frozen", "finetune")),
        ("budget", [budget], BUDGETS),
        ("arch", archs, archs),
        ("bundle", digests, digests),
    ):
        if not names and what != "against":
            raise UsageError(what, "nothing was named", "name at least one")
        for position, name in enumerate(names):
            if name not in known:
                others = "or name a policy that `mapolicy policies` can import, or a file" if what == "against" else ""
                raise UsageError(what, f"{name!r} is not one of {', '.join(known)}", others)
            if name in names[:position]:
                raise UsageError(what, f"{name[:40]} was named twice", "name it once")
    for what, number in (("seeds", seeds), ("jobs", jobs)):
        if number < 1:
            raise UsageError(what, f"{number} is not at least 1")
    for arch in archs:
        check_arch(arch)


def check_bundles(searched: Sequence[PolicyBundle], configs: Sequence[TrainConfig]) -> None:
    """Check that all bundles were searched on one data set, with the settings that the trainings have.

    Raises:
        InputError: they were not.
    """
    for bundle in searched:
        first = searched[0]
        here, there = bundle.manifest.dataset, first.manifest.dataset
        if (here.name, here.classes, here.counts.images) != (there.name, there.classes, there.counts.images):
            why = f"was searched on another data set than {short_digest(first)}"
            raise InputError(f"bundle {short_digest(bundle)}", why, "compare bundles of one data set")
        for config in configs:
            if bundle is first:
                check_settings(config, first, FREE_DATA_SETTINGS)
            check_settings(with_split_of(config, bundle), bundle, FREE_DATA_SETTINGS)


@dataclass(frozen=True)
class CheckedData:
    """The data set under the first split, in the memory of the CPU, and the seconds that reading it took."""

    splits: DataSplits
    seconds: float


def check_data(split_owners: Sequence[PolicyBundle | None], configs: Sequence[TrainConfig]) -> CheckedData:
    """Open the data set under each split and build each network once, so that no job fails on it hours later.

    Args:
        split_owners: the searched bundles; `[None]` if there are none.
        configs: one for each network.

    Raises:
        UsageError, InputError, EnvironmentFault: as `train_network`.
    """
    cpu = torch.device("cpu")
    found: CheckedData | None = None
    with reproducible(configs[0].threads, cpu):
        for owner in split_owners:
            own = with_split_of(configs[0], owner)
            held_out = None if owner is None else owner.meta_validation
            check = None if owner is None else DatasetComparison(owner, False)
            if owner is not None:
                check_before_download(own, owner)
            started = time.monotonic()
            splits = load_splits(own, cpu, own.stage, held_out, check)
            found = found or CheckedData(splits, time.monotonic() - started)
            for config in configs if owner is split_owners[0] else ():
                TrainingSetup.over(config, splits, cpu)
    assert found is not None
    return found


def caveats(searched: Sequence[PolicyBundle], configs: Sequence[TrainConfig]) -> list[str]:
    """Sentences that a reader of the table needs: shared splits, and proxies trained for other epochs."""
    notes = []
    for position, bundle in enumerate(searched):
        twin = next((b for b in searched[:position] if torch.equal(b.meta_validation, bundle.meta_validation)), None)
        if twin is not None:
            notes.append(
                f"bundles {short_digest(twin)} and {short_digest(bundle)} have the same split: their baselines are the "
                "same runs, and the intervals are too narrow"
            )
        for config in configs:
            epochs = bundle.manifest.run.epochs
            if is_proxy(config, bundle) and epochs != config.epochs:
                text = f"{PROXY}: {config.arch} was searched for {epochs} epochs, the others train for {config.epochs}"
                notes += [text] if text not in notes else []
    return notes
