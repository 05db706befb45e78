"""Interleaved measurement: every candidate once a round, so that what slows the machine down slows all of them.

A ratio is the median over rounds of the ratio within a round: a slow minute moves both of its terms, and neither a slow
drift nor one disturbed round moves the median.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import TrainingError

WARM_UP = 1  # rounds that are not counted: caches, lazy imports, compilation

Progress = Callable[[str], None]


def silent(text: str) -> None:
    """Progress that nobody follows."""


@dataclass(frozen=True)
class Candidate:
    """One way of doing the work.

    Attributes:
        what: its name in the report.
        work: does it once; given the number of the call, from 0, which is the same for all candidates with equal
            `calls`.
        calls: consecutive calls that make one sample, whose mean is taken: for work that differs from call to call.
        facts: whatever else the report shall say about it.
    """

    what: str
    work: Callable[[int], object]
    calls: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Clock:
    """The one source of time: seconds, and the words that say which seconds."""

    meaning: str
    read: Callable[[], float]

    @classmethod
    def of(cls, device: torch.device) -> "Clock":
        """CPU time where the work is the CPU's, else wall-clock time with the device's work finished."""
        if device.type != "cuda":
            return cls("CPU time of the process, all its threads (time.process_time)", time.process_time)

        def read() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return cls("wall-clock time with the GPU synchronised (time.perf_counter)", read)


@dataclass(frozen=True)
class Row:
    """One candidate's figures: median and quartiles of a call, and of its ratio to the reference, over n rounds."""

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
        """The row as plain values, the facts beside the figures."""
        return {**{key: value for key, value in vars(self).items() if key != "facts"}, **self.facts}


def measure(
    candidates: Sequence[Candidate],
    against: str,
    rounds: int,
    clock: Clock,
    progress: Progress = silent,
    title: str = "",
) -> list[Row]:
    """Run all candidates in turn, round after round.

    Args:
        candidates: in the order of a round; their names differ.
        against: name of the reference.
        rounds: that count; `WARM_UP` more come first.
        clock: read before and after each candidate's calls.
        progress: told of each round.
        title: of the progress.

    Returns:
        A row for each candidate, in their order.

    Raises:
        TrainingError: memory has run out.
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
    except RuntimeError as problem:  # torch has one error for each kind of device
        if isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in str(problem):
            raise TrainingError(candidate.what, "memory has run out", "lower --batch-size") from None
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
    """Lower quartile, median and upper quartile, linear between the values; all three the value where there is one."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
