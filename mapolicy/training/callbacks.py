"""Callbacks of a run. The library prints nothing; pass a `Reporter` to show or log a run's progress."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

if TYPE_CHECKING:
    from .policy_view import PolicyView

Record = Mapping[str, float]


class Reporter:
    """Callbacks that a run calls as it progresses. Each does nothing here; a subclass overrides those that it needs.

    Records hold plain numbers by name: `iteration`, `epoch`, `loss`, `learning_rate`, `images_per_second`,
    `seconds_left`, and where a policy is being learned `validation_loss`, `alpha`, `entropy`, `weight_spread`,
    `signal_to_noise`.
    """

    def on_open(self, settings: Mapping[str, Any], folder: Path | None, iteration: int) -> None:
        """Called first, with the settings, the run folder or None, and the number of iterations already completed."""

    def on_start(self, what: str, iterations: int, facts: Mapping[str, str], seconds: float | None) -> None:
        """Called when the run begins.

        Args:
            what: names the run.
            iterations: their total number.
            facts: to show the user, by name.
            seconds: estimated duration; None if unknown.
        """

    def on_step(self, iteration: int, seconds_left: float) -> None:
        """Called after each iteration, with the number completed and the estimated seconds left."""

    def on_log(self, record: Record) -> None:
        """Called after each iteration that is logged, with its record."""

    def on_evaluate(self, record: Record) -> None:
        """Called when the network was evaluated after an epoch, with `epoch` and `validation_top1`."""

    def on_policy(self, likeliest: Sequence[tuple[str, str, float]]) -> None:
        """Called after an epoch with the most probable pairs of operations and their p_jk; empty without a sampler."""

    def on_view(self, view: "PolicyView") -> None:
        """Called after an epoch with the policy: some augmented images, the weights, what is drawn; each on demand."""

    def on_note(self, text: str) -> None:
        """Called with a message that the user should see."""

    def on_complete(self, result: Mapping[str, Any]) -> None:
        """Called when the run has completed, with the content of `result.json`."""

    def on_finish(self) -> None:
        """Called when the run has ended, also after an error."""

    def on_compare(self, done: int, runs: int, text: str, seconds_left: float) -> None:
        """Called after each run of a comparison, also after a failed one.

        Args:
            done: number of runs that have ended.
            runs: their total number.
            text: result of the last one.
            seconds_left: estimated.
        """


class Reporters(Reporter):
    """Calls several reporters. An exception of the first ends the run; any other reporter that raises is dropped.

    Args:
        first: such as the caller's display.
        others: such as loggers.
    """

    def __init__(self, first: Reporter, others: Sequence[Reporter]) -> None:
        self._first, self._others = first, list(others)

    def _tell(self, what: str, *arguments: Any) -> None:
        getattr(self._first, what)(*arguments)
        for other in tuple(self._others):
            try:
                getattr(other, what)(*arguments)
            except Exception as problem:  # of any kind, such as a full disk or a server that is down
                self._others.remove(other)
                self._first.on_note(f"warning: {type(other).__name__} has failed and hears no more ({problem})")

    @override
    def on_open(self, settings: Mapping[str, Any], folder: Path | None, iteration: int) -> None:
        self._tell("on_open", settings, folder, iteration)

    @override
    def on_start(self, what: str, iterations: int, facts: Mapping[str, str], seconds: float | None) -> None:
        self._tell("on_start", what, iterations, facts, seconds)

    @override
    def on_step(self, iteration: int, seconds_left: float) -> None:
        self._tell("on_step", iteration, seconds_left)

    @override
    def on_log(self, record: Record) -> None:
        self._tell("on_log", record)

    @override
    def on_evaluate(self, record: Record) -> None:
        self._tell("on_evaluate", record)

    @override
    def on_policy(self, likeliest: Sequence[tuple[str, str, float]]) -> None:
        self._tell("on_policy", likeliest)

    @override
    def on_view(self, view: "PolicyView") -> None:
        self._tell("on_view", view)

    @override
    def on_note(self, text: str) -> None:
        self._tell("on_note", text)

    @override
    def on_complete(self, result: Mapping[str, Any]) -> None:
        self._tell("on_complete", result)

    @override
    def on_finish(self) -> None:
        self._tell("on_finish")

    @override
    def on_compare(self, done: int, runs: int, text: str, seconds_left: float) -> None:
        self._tell("on_compare", done, runs, text, seconds_left)
