"""How long an iteration takes under each policy, measured in turn on the same batches."""

import statistics
from collections.abc import Sequence

import torch

from .bundle import PolicyBundle
from .config import TrainConfig
from .contenders import Contender
from .cost import timed
from .data import load_splits
from .iteration import Iteration
from .run import training_plan, validation_plan
from .runtime import reproducible, resolve_device
from .task import Task
from .train import plan

WARM_UP, SAMPLES = 1, 7


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
