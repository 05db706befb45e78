"""What an iteration costs against a plain training step, measured inside the run by a twin that takes plain steps."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from ..policy.augmentations import NoAugmentation
from .iteration import LabelledImages, WeightedIteration
from .optim import make_optimizer, make_schedule
from .setup import TrainingSetup

WARM_UP = 3
SAMPLES = 7  # of each kind of iteration

T = TypeVar("T")


class CostMeter:
    """Times a few early iterations of a run and, in between, plain steps of a copy of its network.

    A plain step is base augmentation, Cutout, normalisation, forward, backward, update of the same images once each.
    The copy is dropped after the last sample; the run's own state is not touched.

    Args:
        setup: of the run.
        period: iterations after which the work of an iteration repeats.
    """

    def __init__(self, setup: TrainingSetup, period: int = 1) -> None:
        self._config, self._task, self._period = setup.config.with_changes(copies=1), setup, period
        self._samples = SAMPLES * period
        self._plain: WeightedIteration | None = None
        self._seconds: list[tuple[float, float]] = []
        self._calls = 0

    @property
    def ratio(self) -> float | None:
        """Median time of an iteration over that of a plain step; None before there is a sample of every kind.

        Where only some iterations learn the policy it is the mean over a period of each kind's median.
        """
        if len(self._seconds) < self._period:
            return None
        whole, plain = zip(*self._seconds, strict=True)
        kinds = [statistics.median(whole[kind :: self._period]) for kind in range(self._period)]
        return float(statistics.mean(kinds) / statistics.median(plain))

    def __call__(self, batch: LabelledImages, iteration: Callable[[], T]) -> T:
        """Run the iteration, timing it against a plain step on the same batch if a sample is due."""
        self._calls += 1
        if not WARM_UP < self._calls <= WARM_UP + self._samples:
            self._plain = None
            return iteration()
        if self._plain is None:
            try:
                self._plain = self._twin()
                self._plain(0, batch, None)
            except torch.OutOfMemoryError:  # no room for a second network: the run goes on unmeasured
                self._plain, self._calls = None, WARM_UP + self._samples
                return iteration()
        plain = self._plain
        device = batch[0].device
        _, plain_seconds = timed(lambda: plain(0, batch, None), device)
        outcome, seconds = timed(iteration, device)
        self._seconds.append((seconds, plain_seconds))
        return outcome

    def _twin(self) -> WeightedIteration:
        network = copy.deepcopy(self._task.network)
        optimizer = make_optimizer(self._config, network)
        twin = replace(
            self._task,
            config=self._config,
            pipeline=self._task.pipeline.with_config(self._config),
            network=network,
            optimizer=optimizer,
            schedule=make_schedule(self._config, optimizer, self._task.iterations_per_epoch),
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
