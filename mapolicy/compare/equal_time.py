"""Equal time: how long an iteration takes under each policy, measured in turn on the same batches, and epochs of it."""

import statistics
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..data.batch_sampler import training_plan, validation_plan
from ..data.splits import load_splits
from ..policy.policy_bundle import PolicyBundle
from ..runtime.device import reproducible, resolve_device
from ..train import plan
from ..training.iteration import Iteration
from ..training.setup import Task
from ..training.step_time import timed
from .job import of_another
from .policies import Contender

WARM_UP, SAMPLES = 1, 7

# By network and policy: seconds_per_iteration, epochs.
Pace = dict[str, dict[str, dict[str, Any]]]


def epochs_of_equal_time(
    split_of: PolicyBundle | None,
    configs: Sequence[TrainConfig],
    policies: Sequence[Contender],
    known: Pace | None,
    run_dir: Path,
    noted: Callable[[str], None],
) -> Pace:
    """Epochs under which every policy takes the time that the dearest takes for the configuration's.

    Args:
        split_of, configs, policies: of the comparison; of several searched bundles the first.
        known: what was measured when the comparison began; it stays.
        run_dir: for the error.
        noted: hears what came out.

    Raises:
        InputError: the comparison began without one of the networks or policies.
    """
    labels = [policy.label for policy in policies]
    if known is not None:
        for config, label in product(configs, labels):
            if label not in known.get(config.arch, {}):
                raise of_another(run_dir, [f"{config.arch} with {label} was not measured when it began"])
        return known
    found: Pace = {}
    for config in configs:
        seconds = seconds_per_iteration(config, policies, split_of)
        found[config.arch] = {
            label: {"seconds_per_iteration": own, "epochs": round(config.epochs * max(seconds) / own)}
            for label, own in zip(labels, seconds, strict=True)
        }
        epochs = ", ".join(
            f"{label} {facts['epochs']}{_off(facts['epochs'] * own / (config.epochs * max(seconds)))}"
            for (label, facts), own in zip(found[config.arch].items(), seconds, strict=True)
        )
        noted(f"{config.arch}: epochs that take the same time: {epochs}")
    return found


def _off(share: float) -> str:
    """What whole epochs make of equal time, where it is 2 % or more."""
    return f" ({share - 1:+.0%} of time)" if abs(share - 1) >= 0.02 else ""


def check_epochs(known: dict[str, int], configs: Sequence[TrainConfig], run_dir: Path) -> None:
    """Each network's epochs are those that the comparison began with; what is not known yet is written to `known`.

    Raises:
        InputError: they are not.
    """
    changed = [
        f"{config.arch}: epochs {before} -> {config.epochs}"
        for config in configs
        if (before := known.setdefault(config.arch, config.epochs)) != config.epochs
    ]
    if changed:
        raise of_another(run_dir, changed)


def seconds_per_iteration(
    config: TrainConfig, policies: Sequence[Contender], split_of: PolicyBundle | None
) -> list[float]:
    """Median wall-clock seconds of an iteration of each training, what its batches' decoding takes left out.

    Args:
        config: of the trainings, but for policy and mode.
        policies: of the trainings.
        split_of: the searched bundle whose policy and split they have; None for a split that the settings draw.

    Raises:
        UsageError, InputError: as `train_network`.
    """
    device = resolve_device(config.device)
    held_out = None if split_of is None else split_of.meta_validation
    samples: list[list[float]] = [[] for _ in policies]
    with reproducible(config.threads, device):
        splits = load_splits(config, device, config.stage, held_out)
        iterations = [
            plan(own, policy.bundle(split_of), Task.over(own, splits, device), device)[0]
            for policy, own in ((policy, policy.of(config)) for policy in policies)
        ]
        for number in range(WARM_UP + SAMPLES):
            for iteration, seconds in zip(iterations, samples, strict=True):
                seconds.append(_sample(iteration, number, device))
    return [statistics.median(seconds[WARM_UP:]) for seconds in samples]


def _sample(iteration: Iteration, number: int, device: torch.device) -> float:
    """Mean over the iterations after which the work repeats, on a batch of an epoch of its own."""
    task, config, period = iteration.task, iteration.task.config, iteration.period
    held_out = task.splits.meta_validation
    ((_, order), *_) = training_plan(config, len(task.training), number)
    (batch,) = task.training.batches([(number, order)], augment=True)
    (guide,) = held_out.batches(validation_plan(config, len(held_out), [number]))

    def work() -> None:
        for step in range(number * period, (number + 1) * period):
            iteration(step, batch, guide if iteration.learns_policy(step) else None)

    return timed(work, device)[1] / period
