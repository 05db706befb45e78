"""What a policy learned and how it did in its own check, in sentences. Reads numbers alone; imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..transforms.space import MAX_LEVEL, OPERATION_SPECS, SPACES, OperationSpace
from .format import level_probabilities
from .manifest import ManifestDraft
from .manifest_levels import LEARNED, Verification, VerifiedPolicy

NORMAL_95 = 1.96
RARE = 2 / 3  # of a uniform draw's frequency: less often counts as thinned
# Standard deviations of a batch's scores. Levels that are known to harm have 0.04 to 0.22 (docs/evidence.md).
NEGLIGIBLE = 0.02
# Of a uniform draw's frequency: where nothing harms, the search thins down to this by chance (docs/algorithm.md).
BY_CHANCE = math.exp(-1.5)
FEW_ITERATIONS = 200  # in fewer a search cannot tell what harms; the demo's 200 of large batches can
HARMS, MAY_HARM = "harms", "may harm"
EASY = "is easy for the proxy"
NO_AUGMENTATION = "none"
SEEN = {"class": "class", "features": "deep feature"}
DEPENDS = 0.2  # of the logarithm of a frequency: a smaller deviation between images is not worth a word
MOST_NAMED = 4
# Over uniform draws on Omniglot's test images +2.3 of +4.5 points were left, with other networks +1.2 of +4.2, on
# CIFAR-100 none; on images set aside the check said +2.9, and +2.4 was measured (docs/evidence.md).
OPTIMISTIC = (
    "The policy was learned on these images, so its gain is optimistic: on test images about half of it was left in "
    "measurements, with other networks or on photos less, or none. A search with `--set verify_per_class=0.1` checks "
    "on a tenth of the training images, which the policy has not seen; `mapolicy compare` measures the gain."
)

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

    def sentence(self, space: OperationSpace, verb: str = HARMS) -> str:
        """In words, in the operation's own unit; `verb` says how sure that is."""
        whole = self.low <= -MAX_LEVEL and self.high >= MAX_LEVEL
        what = self.operation if whole else at_levels(self.operation, self.low, self.high, space)
        return f"{what} {verb} (drawn {how_often(self.frequency)})"


def how_often(frequency: float) -> str:
    """A frequency over a uniform draw's, in words."""
    often = f"{frequency:.2g}" if frequency >= 0.01 else "less than 0.01"
    return f"{often} times as often as at random"


def at_levels(operation: str, low: float, high: float, space: OperationSpace) -> str:
    """An operation between two signed levels, in its own unit: "Rotate at 15 to 30 degrees"."""
    spread = space.ranges[operation]
    if spread is None:
        return operation
    return f"{operation} at {_in_unit(spread.value(low), spread.value(high), OPERATION_SPECS[operation].unit)}"


def _in_unit(low: float, high: float, unit: str) -> str:
    """A range of an operation's parameter: "15 to 30 degrees", "threshold 128 to 0", "factor 1.45 to 1.9"."""
    if not unit.startswith("as "):
        return f"{low:.3g} to {high:.3g} {unit}".strip()
    name = unit.removeprefix("as ")
    shift = 1 if name.endswith(" less 1") else 0
    return f"{name.removesuffix(' less 1')} {low + shift:.3g} to {high + shift:.3g}"


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


def what_was_learned(
    log_levels: Table,
    strength: float,
    space: OperationSpace,
    most: int = 6,
    effect: float | None = None,
    adversarial: bool = False,
    iterations: int | None = None,
) -> list[str]:
    """Sentences about the levels: what harms, and which operations make no difference.

    Args:
        log_levels: float [stages, K, bins].
        strength: kappa.
        space: the operations.
        most: sentences about what harms.
        effect: how much operations or levels differ beyond chance, standard deviations; None where it is not known.
        adversarial: what is drawn less often has a small training loss; it does not harm.
        iterations: of the search; None where it is not known.
    """
    relative = relative_frequencies(log_levels, strength)
    rare = thinned(relative, space)
    few = iterations is not None and iterations < FEW_ITERATIONS
    unsure = few or (effect is not None and effect < NEGLIGIBLE)
    verbs = [MAY_HARM if unsure or each.frequency > BY_CHANCE else HARMS for each in rare[:most]]
    sentences = [
        each.sentence(space, EASY if adversarial else verb) for each, verb in zip(rare[:most], verbs, strict=True)
    ]
    if len(rare) > most:
        sentences.append(f"{len(rare) - most} more ranges of levels are drawn less often than at random")
    too_few = f"{iterations} iterations are too few to tell which operations harm, some hundreds are needed"
    if not rare and few:
        return [f"{too_few}: so far none is drawn clearly less often than at random"]
    if not rare:
        return ["no operation is drawn clearly less often than at random at any level"]
    if unsure:
        why = too_few if few else "operations and levels hardly differ from each other"
        sentences.insert(0, f"{why}, so the following may be chance")
    harmless = [name for name in space.ranges if name not in {each.operation for each in rare}]
    if harmless:
        what = "are harmless at every level" if not unsure else "were not seen to harm, which says little"
        what = "are easy at no level" if adversarial else what
        sentences.append(f"{len(harmless)} of the {len(space.ranges)} operations {what}: {', '.join(harmless)}")
    return sentences


def effect_of(manifest: ManifestDraft) -> float | None:
    """How much operations or levels differ beyond chance, standard deviations; None where the bundle does not say."""
    found = [manifest.results.get(name) for name in ("operation_effects", "level_effects")]
    known = [value for value in found if value is not None]
    return max(known) if known else None


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
        return f"{_signed(self.points)} points (95 % interval {_signed(self.low)} to {_signed(self.high)})"


def _signed(points: float) -> str:
    return f"{round(points, 1) + 0.0:+.1f}"  # the sum makes 0.0 of -0.0


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


def better_policy(verification: Verification, strength: float) -> str | None:
    """The name for `--policy` that did better than the kept policy, the best of them; None where none did."""
    kept = kept_row(verification, strength)
    others = [row for row in verification.rows if row.policy not in (LEARNED, kept.policy)]
    best = max(others, key=lambda row: row.correct, default=kept)
    return best.policy if best.correct > kept.correct else None


def verdict(verification: Verification, strength: float) -> str:
    """The one sentence that follows from a verification, with what to type where the policy is not the best."""
    images, kept = verification.images, kept_row(verification, strength)
    name = "the learned policy" if kept.policy == LEARNED else "drawing the operations uniformly"
    others = [row for row in verification.rows if row.policy not in (LEARNED, kept.policy)]
    if not others:
        return f"{name} was compared with nothing else on {images} held-out images"
    if all(row.only_kept == row.only_this == 0 for row in others):
        return (
            f"every policy is right on the same {kept.correct} of {images} held-out images, so this check cannot tell "
            "them apart; search for longer"
        )
    best = max(others, key=lambda row: row.correct)
    if best.correct > kept.correct:
        gain = gain_over(best, images)
        found = f"{-gain.points:.1f} points %s {name if best.policy != NO_AUGMENTATION else 'it'}"
        where = f"on {images} held-out images ({_interval(gain)})"
        if best.policy == NO_AUGMENTATION:
            return (
                f"nothing beats leaving augmentation out in runs of {_epochs(verification)}: {name} is "
                f"{found % 'below'} {where}; train with --policy none, or longer"
            )
        return f"{best.policy} is {found % 'above'} {where}; train with --policy {best.policy}"
    rival = next((row for row in others if row.policy == "trivialaugment"), best)
    gain = gain_over(rival, images)
    where = f"{rival.policy} on {images} held-out images ({_interval(gain)})"
    if kept.correct == rival.correct:
        return f"{name} is as good as {where}"
    return f"{name} is {gain.points:.1f} points above {where}"


def _epochs(verification: Verification) -> str:
    return "1 epoch" if verification.epochs == 1 else f"{verification.epochs} epochs"


def _interval(gain: Gain) -> str:
    """Of the gain's size, whichever of the two is ahead."""
    low, high = (-gain.high, -gain.low) if gain.points < 0 else (gain.low, gain.high)
    return f"95 % interval {_signed(low)} to {_signed(high)}" + ("; this may be chance" if low <= 0 <= high else "")


def verification_lines(verification: Verification, strength: float) -> list[tuple[str, str]]:
    """Each row: what was trained, and its accuracy with what the kept policy gains over it."""
    lines, kept = [], kept_row(verification, strength)
    for row in verification.rows:
        label = row.policy if row.strength is None else f"{row.policy}, strength {row.strength:g}"
        accuracy = f"{100 * row.correct / verification.images:.1f} %"
        gain = f"; the bundle's policy {gain_over(row, verification.images)}"
        lines.append((label, f"{accuracy}, the bundle's policy" if row is kept else f"{accuracy}{gain}"))
    return lines


def how_it_was_checked(verification: Verification) -> str:
    """What the rows of a verification are, in one sentence or two."""
    seen = "" if verification.unseen else f" {OPTIMISTIC}"
    return (
        f"The proxy was trained from scratch under each policy for {_epochs(verification)} and measured on "
        f"{verification.images} held-out images.{seen}"
    )


@dataclass(frozen=True)
class Findings:
    """Everything that a bundle says about its policy in sentences; empty where it does not know.

    Attributes:
        weights: what equal weights mean.
        learned: what was learned of levels.
        verdict: what follows from the check.
        checked: how it was checked.
        rows: the check's policies and how they did.
    """

    weights: str = ""
    learned: Sequence[str] = ()
    verdict: str = ""
    checked: str = ""
    rows: Sequence[tuple[str, str]] = ()

    @classmethod
    def of(cls, manifest: ManifestDraft, log_levels: Table | None, effects: Table | None = None) -> Self:
        """Those of a bundle.

        Args:
            manifest: the bundle's.
            log_levels: float [stages, K, bins] where the manifest has levels, else None.
            effects: float [D, K, bins] where the draws depend on the image, else None.
        """
        learned: Sequence[str] = ()
        strength = 0.0
        if manifest.levels is not None and log_levels is not None:
            strength = manifest.levels.strength
            space = SPACES[manifest.operations.space]
            learned = _learned(manifest, log_levels)
            if effects is not None:
                learned = [*learned, what_depends_on_images(manifest, effects, space)]
        weights, check = "" if manifest.weighs_images else what_it_sees(manifest), manifest.verification
        if check is None:
            return cls(weights, learned)
        rows = verification_lines(check, strength)
        return cls(weights, learned, verdict(check, strength), how_it_was_checked(check), rows)


def _learned(manifest: ManifestDraft, log_levels: Table) -> list[str]:
    """`what_was_learned` of a bundle with levels."""
    assert manifest.levels is not None
    space, adversarial = SPACES[manifest.operations.space], manifest.search.settings.get("sampler") == "adversarial"
    strength = manifest.levels.strength
    effect, iterations = effect_of(manifest), manifest.run.iterations
    return what_was_learned(log_levels, strength, space, effect=effect, adversarial=adversarial, iterations=iterations)


def what_it_sees(manifest: ManifestDraft) -> str:
    """What a policy that gives images no weights of their own sees of them, as a sentence."""
    if not manifest.equal_weights:
        return "this policy weighs a sample by its training loss alone, which only a training run has"
    seen = "" if manifest.levels is None else SEEN.get(manifest.levels.input, "")
    if seen:
        return f"this policy's draws depend on the image's {seen}; all samples have the same weight"
    return "this policy sees the transformation, not the image: all samples have the same weight"


def what_depends_on_images(manifest: ManifestDraft, effects: Table, space: OperationSpace) -> str:
    """For which operations the draws depend on the image, as a sentence.

    Args:
        manifest: with levels.
        effects: float [D, K, bins], V; h(x) has uncorrelated coordinates of unit variance.
        space: the operations.
    """
    assert manifest.levels is not None
    spread = manifest.levels.strength * np.sqrt((effects**2).sum(0)).mean(1)
    order = [int(row) for row in np.argsort(-spread, kind="stable") if spread[row] > DEPENDS]
    seen = SEEN[manifest.levels.input]
    if not order:
        return f"no operation's share depends on the image's {seen}"
    names = ", ".join(space.names[row] for row in order[:MOST_NAMED])
    more = f" and {len(order) - MOST_NAMED} more" if len(order) > MOST_NAMED else ""
    return f"how often an operation is drawn depends on the image's {seen} for {names}{more}"


def levels_document(
    manifest: ManifestDraft, log_levels: Table | None, effects: Table | None = None
) -> dict[str, Any] | None:
    """What was learned of levels as JSON-compatible values; None without levels.

    Returns:
        The manifest's part, `relative_frequencies` [K][bins], and the sentences as `learned`.
    """
    if manifest.levels is None or log_levels is None:
        return None
    strength, space = manifest.levels.strength, SPACES[manifest.operations.space]
    more = [] if effects is None else [what_depends_on_images(manifest, effects, space)]
    return {
        **manifest.levels.model_dump(),
        "edges": list(manifest.levels.edges),
        "relative_frequencies": relative_frequencies(log_levels, strength).tolist(),
        "learned": [*_learned(manifest, log_levels), *more],
    }


def verification_document(manifest: ManifestDraft) -> dict[str, Any] | None:
    """The check as JSON-compatible values, with what follows from it; None without one."""
    check = manifest.verification
    if check is None:
        return None
    strength = 0.0 if manifest.levels is None else manifest.levels.strength
    kept, rows = kept_row(check, strength), []
    for row in check.rows:
        gain = gain_over(row, check.images)
        interval = {"gain": gain.points, "gain_low": gain.low, "gain_high": gain.high}
        rows.append({**row.model_dump(), "kept": row is kept, **interval})
    return {**check.model_dump(), "rows": rows, "verdict": verdict(check, strength)}
