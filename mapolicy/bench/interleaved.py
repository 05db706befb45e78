"""Interleaved timing: every candidate runs once in each round, so that a slow minute of the machine slows all of them.

A ratio is the median over rounds of the ratio within a round. Neither a slow drift nor one disturbed round changes it.
The clock is not `training.step_time.StepTimer`'s: on a CPU a benchmark counts CPU time, which other work on the machine
hardly changes, while a run's estimate needs the wall-clock seconds that its user waits.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import TrainingError

WARM_UP = 1  # rounds before the counted ones: caches, lazy imports, compilation

Progress = Callable[[str], None]


def silent(text: str) -> None:
    """Progress that is not reported."""


@dataclass(frozen=True)
class Candidate:
    """One of the alternatives that are timed.

    Attributes:
        what: name in the report.
        work: the timed function. Its argument is the number of the call, from 0, the same for all candidates with equal
            `calls`.
        calls: consecutive calls in one sample, which is their mean: for work that differs from call to call.
        facts: further entries of its row in the report.
    """

    what: str
    work: Callable[[int], object]
    calls: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Clock:
    """A source of time: `read` returns seconds, and `meaning` says which seconds they are."""

    meaning: str
    read: Callable[[], float]

    @classmethod
    def of(cls, device: torch.device) -> "Clock":
        """CPU time for work on the CPU, wall-clock time with the GPU synchronised for work on a GPU."""
        if device.type != "cuda":
            return cls("CPU time of the process, all its threads (time.process_time)", time.process_time)

        def read() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return cls("wall-clock time with the GPU synchronised (time.perf_counter)", read)

    @classmethod
    def for_threads(cls, device: torch.device, threads: int) -> "Clock":
        """`of`, but wall-clock time for several threads of a CPU, which take no less CPU time than one."""
        if device.type == "cuda" or threads == 1:
            return cls.of(device)
        return cls("wall-clock time (time.perf_counter)", time.perf_counter)


@dataclass(frozen=True)
class Row:
    """Results of a candidate: quartiles over n rounds of a call's milliseconds and of its ratio to the reference."""

    what: str
    median_ms: float
    low_ms: float
    high_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    against: str
    n: int
    facts: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """Plain values for JSON, facts included."""
        return {**{key: value for key, value in vars(self).items() if key != "facts"}, **self.facts}


def measure(
    candidates: Sequence[Candidate],
    against: str,
    rounds: int,
    clock: Clock,
    progress: Progress = silent,
    title: str = "",
) -> list[Row]:
    """Time all candidates in turn, round after round.

    Args:
        candidates: in the order of a round, with different names.
        against: name of the reference.
        rounds: number of counted rounds, after `WARM_UP` rounds.
        clock: read before and after the calls of each candidate.
        progress: called at the start of each round.
        title: start of each progress message.

    Returns:
        A row for each candidate, in their order.

    Raises:
        TrainingError: out of memory.
    """
    samples: dict[str, list[float]] = {candidate.what: [] for candidate in candidates}
    for number in range(WARM_UP + rounds):
        counted = number - WARM_UP
        progress(f"{title}: round {counted + 1} of {rounds}" if counted >= 0 else f"{title}: warming up")
        for candidate in candidates:
            calls = range(number * candidate.calls, (number + 1) * candidate.calls)
            seconds = _seconds(candidate, calls, clock)
            if counted >= 0:
                samples[candidate.what].append(seconds / candidate.calls)
    return [_row(candidate, samples, against) for candidate in candidates]


def _seconds(candidate: Candidate, calls: range, clock: Clock) -> float:
    try:
        start = clock.read()
        for call in calls:
            candidate.work(call)
        return clock.read() - start
    except RuntimeError as problem:  # on a CPU torch raises no error class of its own
        if isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in str(problem):
            raise TrainingError(candidate.what, "out of memory", "lower --batch-size") from None
        raise


def _row(candidate: Candidate, samples: Mapping[str, Sequence[float]], against: str) -> Row:
    own, reference = samples[candidate.what], samples[against]
    low, middle, high = quartiles([1000 * seconds for seconds in own])
    ratios = quartiles([mine / theirs for mine, theirs in zip(own, reference, strict=True)])
    return Row(
        what=candidate.what,
        median_ms=middle,
        low_ms=low,
        high_ms=high,
        ratio=ratios[1],
        ratio_low=ratios[0],
        ratio_high=ratios[2],
        against=against,
        n=len(own),
        facts=candidate.facts,
    )


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, with linear interpolation; for a single value all three are it."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
