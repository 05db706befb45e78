"""How long an iteration takes under each policy, measured in turn on the same batches."""

import statistics
from collections.abc import Sequence

import torch

from .bundle import PolicyBundle
from .config import TrainConfig
from .cost import timed
from .data import load_splits
from .iteration import Iteration
from .run import training_plan, validation_plan
from .runtime import reproducible, resolve_device
from .task import Task
from .train import plan

WARM_UP, SAMPLES = 1, 7


def seconds_per_iteration(configs: Sequence[TrainConfig], bundle: PolicyBundle) -> list[float]:
    """Median wall-clock seconds of an iteration of each training, what its batches' decoding takes left out.

    Args:
        configs: trainings that differ in policy and mode alone.
        bundle: whose policy and split they have.

    Raises:
        UsageError, InputError: as `train_network`.
    """
    first = configs[0]
    device = resolve_device(first.device)
    samples: list[list[float]] = [[] for _ in configs]
    with reproducible(first.threads, device):
        splits = load_splits(first, device, first.stage, bundle.meta_validation)
        iterations = [plan(config, bundle, Task.over(config, splits, device), device)[0] for config in configs]
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
