"""What a run tells while it runs. The library prints nothing: whoever wants to see something passes a Reporter."""

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, float]


class Reporter:
    """Hears of a run's progress. This one is silent; a display overrides what it shows.

    Records hold plain numbers by name: `iteration`, `epoch`, `loss`, `learning_rate`, `images_per_second`,
    `seconds_left`, and where a policy is being learned `validation_loss`, `alpha`, `entropy`, `weight_spread`,
    `signal_to_noise`.
    """

    def started(self, what: str, iterations: int, facts: Mapping[str, str]) -> None:
        """The run begins: its name, its number of iterations in all, and what is worth knowing about it."""

    def iterated(self, record: Record) -> None:
        """An iteration that is logged is done; not every one is."""

    def evaluated(self, record: Record) -> None:
        """An epoch is done and the network has been measured: `epoch`, `validation_top1`."""

    def noted(self, text: str) -> None:
        """Something happened that the user should know."""

    def completed(self, result: Mapping[str, Any]) -> None:
        """The run did all it had to; its figures as they stand in `result.json`."""

    def finished(self) -> None:
        """The run is over, well or not."""

    def compared(self, done: int, runs: int, text: str, seconds_left: float) -> None:
        """So many runs of a comparison are done, well or not; what the last one came to."""
