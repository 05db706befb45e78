"""Time of an iteration, and its ratio to a plain training step, which a copy of the network takes inside the run."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch

from ..policy.augmentations import NoAugmentation
from .iteration import WeightedIteration
from .optim import make_optimizer, make_schedule
from .setup import LabelledImages, TrainingSetup

WARM_UP = 3
SAMPLES = 7  # of each kind of iteration

T = TypeVar("T")


class StepTimer:
    """Median wall-clock seconds of an iteration, with the device synchronised before and after each.

    Args:
        device: that does the work.
        counts: iterations of each kind in a period, where their work differs; such as one that learns the policy and
            two that do not.
        warm_up: calls that are not counted, of any kind.
    """

    def __init__(self, device: torch.device, counts: Sequence[int] = (1,), warm_up: int = 0) -> None:
        self._device, self._counts, self._warm_up = device, counts, warm_up
        self._samples: list[list[float]] = [[] for _ in counts]

    def __call__(self, work: Callable[[], T], kind: int = 0) -> T:
        """Do the work of an iteration of this kind and return its result."""
        outcome, seconds = timed(work, self._device)
        if self._warm_up:
            self._warm_up -= 1
        else:
            self._samples[kind].append(seconds)
        return outcome

    @property
    def seconds(self) -> float | None:
        """Mean over a period of each kind's median; None before every kind has a sample."""
        if not all(self._samples):
            return None
        medians = self.each(statistics.median)
        return sum(count * median for count, median in zip(self._counts, medians, strict=True)) / sum(self._counts)

    def each(self, average: Callable[[Sequence[float]], float]) -> list[float]:
        """The average of each kind's samples, of which every kind has one at least."""
        return [average(seconds) for seconds in self._samples]


class CostMeter:
    """Times a few early iterations of a run and, in between, plain steps of a copy of its network.

    A plain step is base augmentation, Cutout, normalisation, forward, backward, update of the same images once each.
    The copy is dropped after the last sample; the run's own state is not touched.

    Args:
        setup: of the run.
        period: iterations after which the work of an iteration repeats.
    """

    def __init__(self, setup: TrainingSetup, period: int = 1) -> None:
        device = setup.pipeline.device
        self._setup, self._period, self._samples = setup, period, SAMPLES * period
        self._whole, self._plain = StepTimer(device, [1] * period), StepTimer(device)
        self._twin: WeightedIteration | None = None
        self._calls = 0

    @property
    def ratio(self) -> float | None:
        """Median time of an iteration over that of a plain step; None before there is a sample of every kind.

        Where only some iterations learn the policy it is the mean over a period of each kind's median.
        """
        whole, plain = self._whole.seconds, self._plain.seconds
        return None if whole is None or plain is None else whole / plain

    def __call__(self, batch: LabelledImages, iteration: Callable[[], T]) -> T:
        """Do the iteration, timing it against a plain step on the same batch if a sample is due."""
        number = self._calls - WARM_UP
        self._calls += 1
        if not 0 <= number < self._samples:
            self._twin = None
            return iteration()
        if self._twin is None:
            try:
                self._twin = plain_twin(self._setup)
                self._twin(0, batch, None)
            except torch.OutOfMemoryError:  # no room for a second network: the run goes on unmeasured
                self._twin, self._calls = None, WARM_UP + self._samples
                return iteration()
        self._plain(partial(self._twin, 0, batch, None))
        return self._whole(iteration, number % self._period)


def plain_twin(setup: TrainingSetup) -> WeightedIteration:
    """Plain training steps of a copy of the network, each image once."""
    config, network = setup.config.with_changes(copies=1), copy.deepcopy(setup.network)
    optimizer = make_optimizer(config, network)
    twin = replace(
        setup,
        config=config,
        pipeline=setup.pipeline.with_config(config),
        network=network,
        optimizer=optimizer,
        schedule=make_schedule(config, optimizer, setup.iterations_per_epoch),
    )
    return WeightedIteration(twin, NoAugmentation())


def timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What the work returns, and its wall-clock seconds, the device synchronised before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    outcome = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return outcome, time.perf_counter() - start
