"""A search's check and the clock: how much of the check fits into the time that is left when it begins."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from ..distributed import Communicator

ENOUGH_ROWS = 3  # trainings of the shortest check: the learned policy, uniform draws and TrivialAugment
SHORTEST = 0.5  # of the search's epochs: the fewest that a training of the check may have


@dataclass(frozen=True)
class Extent:
    """What a check does of what was planned.

    Attributes:
        epochs: of each training; 0 for no check.
        left_out: trainings for which there is no time, by the name that they are kept under.
    """

    epochs: int
    left_out: tuple[str, ...] = ()

    def told(self, planned: int) -> str:
        """What was changed, as a sentence; empty where nothing was.

        Args:
            planned: epochs that each training was to have.
        """
        if not self.epochs:
            return "whether training with the policy helps is not checked, as the time is used up"
        parts = []
        if self.left_out:
            parts.append(f"leaves out {', '.join(self.left_out)}")
        if self.epochs < planned:
            parts.append(f"trains for {self.epochs} of {planned} epochs")
        return f"the check {' and '.join(parts)}, so that it ends in time" if parts else ""

    def without(self, keys: Sequence[str]) -> "Extent":
        """The same without these trainings too."""
        return replace(self, left_out=(*self.left_out, *keys))

    @classmethod
    def from_json(cls, content: Any) -> Self | None:
        """What `vars` gave, from a file; None where it is nothing of the kind."""
        try:
            epochs, left_out = content["epochs"], content["left_out"]
        except (TypeError, KeyError):
            return None
        whole = isinstance(epochs, int) and isinstance(left_out, list) and all(isinstance(key, str) for key in left_out)
        return cls(epochs, tuple(left_out)) if whole and epochs >= 0 else None


def fitting(left: float, training: float, keys: Sequence[str], epochs: int, fewest: int = 1) -> Extent:
    """The largest part of a check that fits into a time: fewer trainings, then shorter ones, then none.

    Args:
        left: seconds.
        training: seconds of one training of all epochs.
        keys: of the trainings, the most important first.
        epochs: of each training.
        fewest: epochs that a training can have.
    """
    rows, enough = int(left // max(training, 1e-9)), min(ENOUGH_ROWS, len(keys))
    if rows >= enough:
        return Extent(epochs, tuple(keys[rows:]))
    shorter = int(left / max(enough * training, 1e-9) * epochs)
    if shorter >= max(fewest, SHORTEST * epochs):
        return Extent(shorter, tuple(keys[enough:]))
    return Extent(0, tuple(keys))


@dataclass(frozen=True)
class Deadline:
    """When a search with its check has to have ended.

    Attributes:
        at: by `time.monotonic()`.
        communicator: clocks differ between processes, so all of them go by rank 0's.
    """

    at: float
    communicator: Communicator

    def left(self) -> float:
        """Seconds until then, the same in all processes."""
        told = self.communicator.broadcast(json.dumps(self.at - time.monotonic()).encode())
        return float(json.loads(told))

    def rows(self, training: float, at_least: int = 0) -> int:
        """How many more trainings fit that take so many seconds each."""
        return max(at_least, int(self.left() // max(training, 1e-9)), 0)
