"""What a run tells while it runs. The library prints nothing: whoever wants to see something passes a Reporter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, float]


class Reporter:
    """Hears of a run's progress. This one is silent; a display overrides what it shows.

    Records hold plain numbers by name: `iteration`, `epoch`, `loss`, `learning_rate`, `images_per_second`,
    `seconds_left`, and where a policy is being learned `validation_loss`, `alpha`, `entropy`, `weight_spread`,
    `signal_to_noise`.
    """

    def opened(self, settings: Mapping[str, Any], folder: Path | None, iteration: int) -> None:
        """Before anything else: the run's settings, its folder if it has one, the iteration that it goes on after."""

    def started(self, what: str, iterations: int, facts: Mapping[str, str], seconds: float | None) -> None:
        """The run begins: its name, its number of iterations in all, what is worth knowing, what time it may take."""

    def stepped(self, iteration: int, seconds_left: float) -> None:
        """An iteration is done: so many are, and the others will take about so long."""

    def iterated(self, record: Record) -> None:
        """An iteration that is logged is done; not every one is."""

    def evaluated(self, record: Record) -> None:
        """An epoch is done and the network has been measured: `epoch`, `validation_top1`."""

    def policy_moved(self, likeliest: Sequence[tuple[str, str, float]]) -> None:
        """After an epoch: the likeliest transformations, both operations and p_jk of each; none without a sampler."""

    def noted(self, text: str) -> None:
        """Something happened that the user should know."""

    def completed(self, result: Mapping[str, Any]) -> None:
        """The run did all it had to; its figures as they stand in `result.json`."""

    def finished(self) -> None:
        """The run is over, well or not."""

    def compared(self, done: int, runs: int, text: str, seconds_left: float) -> None:
        """So many runs of a comparison are done, well or not; what the last one came to."""


class Reporters(Reporter):
    """Several that hear the same. The run depends on the first alone: another one that fails hears no more.

    Args:
        first: a display, or whatever the caller relies on.
        others: loggers.
    """

    def __init__(self, first: Reporter, others: Sequence[Reporter]) -> None:
        self._first, self._others = first, list(others)

    def _tell(self, what: str, *arguments: Any) -> None:
        getattr(self._first, what)(*arguments)
        for other in tuple(self._others):
            try:
                getattr(other, what)(*arguments)
            except Exception as problem:  # theirs, of any kind: a full disk, a server
                self._others.remove(other)
                self._first.noted(f"warning: {type(other).__name__} has failed and hears no more ({problem})")

    def opened(self, settings: Mapping[str, Any], folder: Path | None, iteration: int) -> None:
        """As each of them has it."""
        self._tell("opened", settings, folder, iteration)

    def started(self, what: str, iterations: int, facts: Mapping[str, str], seconds: float | None) -> None:
        """As each of them has it."""
        self._tell("started", what, iterations, facts, seconds)

    def stepped(self, iteration: int, seconds_left: float) -> None:
        """As each of them has it."""
        self._tell("stepped", iteration, seconds_left)

    def iterated(self, record: Record) -> None:
        """As each of them has it."""
        self._tell("iterated", record)

    def evaluated(self, record: Record) -> None:
        """As each of them has it."""
        self._tell("evaluated", record)

    def policy_moved(self, likeliest: Sequence[tuple[str, str, float]]) -> None:
        """As each of them has it."""
        self._tell("policy_moved", likeliest)

    def noted(self, text: str) -> None:
        """As each of them has it."""
        self._tell("noted", text)

    def completed(self, result: Mapping[str, Any]) -> None:
        """As each of them has it."""
        self._tell("completed", result)

    def finished(self) -> None:
        """As each of them has it."""
        self._tell("finished")

    def compared(self, done: int, runs: int, text: str, seconds_left: float) -> None:
        """As each of them has it."""
        self._tell("compared", done, runs, text, seconds_left)
