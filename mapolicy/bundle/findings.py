"""What a policy learned and how it did in its own check, in sentences. Reads numbers alone; imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..transforms.space import MAX_LEVEL, OPERATION_SPECS, OperationSpace
from .format import level_probabilities
from .manifest import Verification, VerifiedPolicy

NORMAL_95 = 1.96
RARE, OFTEN = 2 / 3, 1.25  # of a uniform draw's frequency: less often is thinned, more often is favoured
NO_AUGMENTATION = "none"

Table = npt.NDArray[np.float64]


def relative_frequencies(log_levels: Table, strength: float) -> Table:
    """How often each operation and level is drawn, over how often a uniform draw takes it.

    Args:
        log_levels: float [stages, K, bins]; the second half of the stages is averaged.
        strength: kappa.

    Returns:
        float64 [K, bins], with mean 1.
    """
    cells = level_probabilities(log_levels, strength)
    return cells * cells.size


@dataclass(frozen=True)
class Thinned:
    """A run of neighbouring levels that are drawn less often than a uniform draw would.

    Attributes:
        operation: its name.
        low, high: signed levels.
        frequency: over a uniform draw's.
    """

    operation: str
    low: float
    high: float
    frequency: float

    def sentence(self, space: OperationSpace) -> str:
        """In words, in the operation's own unit."""
        spread = space.ranges[self.operation]
        times = f"drawn {self.frequency:.2g} times as often as at random"
        if spread is None:
            return f"{self.operation} harms ({times})"

        def value(level: float) -> float:
            found = spread.at_zero + (spread.at_ten - spread.at_zero) * abs(level) / MAX_LEVEL
            return -found if spread.signed and level < 0 else found

        unit = OPERATION_SPECS[self.operation].unit
        ends = f"{value(self.low):.3g} to {value(self.high):.3g} {unit}".strip()
        whole = self.low <= -MAX_LEVEL and self.high >= MAX_LEVEL
        return f"{self.operation} harms ({times})" if whole else f"{self.operation} at {ends} harms ({times})"


def thinned(relative: Table, space: OperationSpace) -> list[Thinned]:
    """What is drawn less than `RARE` times as often as at random, the rarest first; neighbouring bins as one."""
    bins = relative.shape[1]
    edges = np.linspace(-MAX_LEVEL, MAX_LEVEL, bins + 1)
    found = []
    for row, (name, spread) in enumerate(space.ranges.items()):
        first = 0 if spread is not None and spread.signed else bins // 2  # both halves are the same elsewhere
        start = None
        for position in range(first, bins + 1):
            rare = position < bins and relative[row, position] < RARE
            if rare and start is None:
                start = position
            if not rare and start is not None:
                low, high = (float(edges[at]) for at in (start, position))
                if spread is None or (not spread.signed and start == bins // 2 and position == bins):
                    low, high = -MAX_LEVEL, MAX_LEVEL
                found.append(Thinned(name, low, high, float(relative[row, start:position].mean())))
                start = None
    return sorted(found, key=lambda each: each.frequency)


def what_was_learned(log_levels: Table, strength: float, space: OperationSpace, most: int = 6) -> list[str]:
    """Sentences about the levels: what harms, and how many operations make no difference."""
    relative = relative_frequencies(log_levels, strength)
    rare = thinned(relative, space)
    sentences = [each.sentence(space) for each in rare[:most]]
    if len(rare) > most:
        sentences.append(f"{len(rare) - most} more levels are drawn less often than at random")
    harmless = len(space.ranges) - len({each.operation for each in rare})
    sentences.append(f"{harmless} of {len(space.ranges)} operations make no difference at any level")
    return sentences


@dataclass(frozen=True)
class Gain:
    """The kept policy's accuracy less another one's, in points, with a 95 % interval.

    The interval is that of paired proportions: only images that one of the two is right about count.
    """

    policy: str
    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} points (95 % interval {self.low:+.1f} to {self.high:+.1f})"


def gain_over(row: VerifiedPolicy, images: int) -> Gain:
    """What the kept policy gains over a row of a verification."""
    discordant, difference = row.only_kept + row.only_this, row.only_kept - row.only_this
    half = NORMAL_95 * math.sqrt(max(discordant - difference**2 / images, 1e-12)) / images
    share = difference / images
    return Gain(row.policy, 100 * share, 100 * (share - half), 100 * (share + half))


def kept_row(verification: Verification, strength: float) -> VerifiedPolicy:
    """The row of the policy that a bundle with this strength holds: uniform draws where it is 0."""
    found = verification.kept(strength)
    if found is None:
        raise ValueError(f"no row of strength {strength}")
    return found


def verdict(verification: Verification, strength: float) -> str:
    """The one sentence that follows from a verification, with what to type where the policy is not the best."""
    images, kept = verification.images, kept_row(verification, strength)
    others = [row for row in verification.rows if row.policy not in ("learned", kept.policy)]
    best = max(others, key=lambda row: row.correct)
    name = "the learned policy" if kept.policy == "learned" else "drawing the operations uniformly"
    gain = gain_over(best, images)
    if best.correct > kept.correct and best.policy == NO_AUGMENTATION:
        return (
            f"nothing beats leaving augmentation out in runs of {verification.epochs} epochs: {name} is "
            f"{-gain.points:.1f} points below it on {images} held-out images; train with --policy none, or longer"
        )
    if best.correct > kept.correct:
        return (
            f"{best.policy} is {-gain.points:.1f} points above {name} on {images} held-out images "
            f"({_interval(gain)}); train with --policy {best.policy}"
        )
    rival = next((row for row in others if row.policy == "trivialaugment"), best)
    shown = gain_over(rival, images)
    return f"{name} is {shown.points:.1f} points above {rival.policy} on {images} held-out images ({_interval(shown)})"


def _interval(gain: Gain) -> str:
    """Of the gain's size, whichever of the two is ahead."""
    low, high = (-gain.high, -gain.low) if gain.points < 0 else (gain.low, gain.high)
    return f"95 % interval {low:+.1f} to {high:+.1f}"


def verification_lines(verification: Verification, strength: float) -> Sequence[tuple[str, str]]:
    """Each row: what was trained, and its accuracy with what the kept policy gains over it."""
    lines = []
    for row in verification.rows:
        label = row.policy if row.strength is None else f"{row.policy}, strength {row.strength:g}"
        accuracy = f"{100 * row.correct / verification.images:.1f} %"
        kept = row is kept_row(verification, strength)
        lines.append(
            (label, f"{accuracy}, kept" if kept else f"{accuracy}; kept {gain_over(row, verification.images)}")
        )
    return lines
