"""From the runs of a comparison to means, spreads and paired differences with their intervals. No torch.

A difference is taken within a unit and then averaged over units: a seed where there is one bundle, a bundle (the mean
over its seeds) where there are several, because seeds of one bundle share its split and its policy.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..config import ZERO_COST_POLICIES

LEVEL = 0.95
PROXY = "proxy"
ROUNDING = 1e-9  # points; a single one of a million test images is 1e-4


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        arch, policy: what was trained with what; the policy `proxy` is the search itself, `dataset-level-DIGITS` the
            dataset-level policy whose digest begins so.
        mode: frozen or finetune; None where there is no policy that could be learned further.
        seed: of the run.
        bundle: whose split the run has; `splitSEED` for one that no bundle has.
        epochs: passes over the training split.
        test_top1, test_top5: per cent.
        test_images: that these were measured on.
        seconds: of the run; None for the proxy, whose bundle does not say.
        cost_ratio: time of an iteration over that of a plain step; None where it was not measured.
    """

    arch: str
    policy: str
    mode: str | None
    seed: int
    bundle: str
    epochs: int
    test_top1: float
    test_top5: float
    test_images: int
    seconds: float | None
    cost_ratio: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences in test top-1, points.

    Attributes:
        against: the other policy.
        n: units that have both.
        mean: over the units.
        half_width: of the 95 % interval around the mean (Student's t, n - 1 degrees of freedom): a difference that is
            smaller cannot be told from none. None for one unit, and where all units have the same difference, which
            says nothing of how far others would lie apart.
    """

    against: str
    n: int
    mean: float
    half_width: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


@dataclass(frozen=True)
class Summary:
    """All runs of one network with one policy.

    Attributes:
        arch, policy, mode, epochs: as in `Row`.
        unit: `seed` or `bundle`.
        n: number of units.
        runs: number of rows.
        test_top1, test_top5: means over units.
        deviation: of the units' top-1, n - 1 in the denominator; None for one unit.
        sampling_error: standard error of one run's top-1, points, that comes of its test images alone (binomial).
        versus_rival: difference to the best of the policies that cost nothing to search, by mean top-1 among those
            compared; choosing the best on the test split itself makes it conservative. None for the rival itself.
        versus_uniform: difference to the same operations with equal probabilities and weights; None without such runs.
        seconds, cost_ratio: means over runs.
    """

    arch: str
    policy: str
    mode: str | None
    epochs: int
    unit: str
    n: int
    runs: int
    test_top1: float
    test_top5: float
    deviation: float | None
    sampling_error: float
    versus_rival: Difference | None
    versus_uniform: Difference | None
    seconds: float | None
    cost_ratio: float | None

    def document(self) -> dict[str, Any]:
        """Plain values, for JSON; a difference has its interval too."""
        found = asdict(self)
        for name in ("versus_rival", "versus_uniform"):
            difference = getattr(self, name)
            if difference is not None:
                found[name]["interval"] = None if difference.interval is None else list(difference.interval)
        return found


Key = tuple[str, str | None]


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """A summary for each network, policy and mode, in the order in which they first appear."""
    rows = list(rows)
    unit = "bundle" if len({row.bundle for row in rows}) > 1 else "seed"
    groups: dict[str, dict[Key, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.arch, {}).setdefault((row.policy, row.mode), []).append(row)
    return [
        _summary(own, of_arch, _rival(of_arch, unit), unit) for of_arch in groups.values() for own in of_arch.values()
    ]


def _rival(of_arch: Mapping[Key, Sequence[Row]], unit: str) -> Key | None:
    """The best of those that cost nothing; None where none of them was compared."""
    means = {
        key: statistics.mean(_by_unit({(row.bundle, row.seed): row.test_top1 for row in own}, unit).values())
        for key, own in of_arch.items()
        if key[0] in ZERO_COST_POLICIES
    }
    return max(means, key=means.__getitem__) if means else None


def _summary(own: Sequence[Row], of_arch: Mapping[Key, Sequence[Row]], rival: Key | None, unit: str) -> Summary:
    first = own[0]
    # A search has a seed, but shares neither order nor initial weights with the training runs of that seed.
    unit = "bundle" if first.policy == PROXY else unit
    top1, top5 = (_by_unit({(row.bundle, row.seed): getattr(row, name) for row in own}, unit) for name in _ACCURACIES)
    seconds = [row.seconds for row in own if row.seconds is not None]
    ratios = [row.cost_ratio for row in own if row.cost_ratio is not None]
    key = (first.policy, first.mode)
    return Summary(
        arch=first.arch,
        policy=first.policy,
        mode=first.mode,
        epochs=first.epochs,
        unit=unit,
        n=len(top1),
        runs=len(own),
        test_top1=statistics.mean(top1.values()),
        test_top5=statistics.mean(top5.values()),
        deviation=statistics.stdev(top1.values()) if len(top1) > 1 else None,
        sampling_error=statistics.mean(math.sqrt(r.test_top1 * (100 - r.test_top1) / r.test_images) for r in own),
        versus_rival=None if rival in (None, key) else _difference(own, of_arch[rival], unit),
        versus_uniform=None if key == _UNIFORM else _difference(own, of_arch.get(_UNIFORM, ()), unit),
        seconds=statistics.mean(seconds) if seconds else None,
        cost_ratio=statistics.mean(ratios) if ratios else None,
    )


_ACCURACIES = ("test_top1", "test_top5")
_UNIFORM: Key = ("uniform", None)


def _by_unit(values: Mapping[tuple[str, int], float], unit: str) -> dict[object, float]:
    """Means over each unit's runs, of values by bundle and seed."""
    units: dict[object, list[float]] = {}
    for (bundle, seed), value in values.items():
        units.setdefault(bundle if unit == "bundle" else seed, []).append(value)
    return {name: statistics.mean(found) for name, found in units.items()}


def _difference(own: Sequence[Row], others: Sequence[Row], unit: str) -> Difference | None:
    """The paired difference over what both have; None where they have nothing in common."""
    ours, theirs = ({(row.bundle, row.seed): row.test_top1 for row in rows} for rows in (own, others))
    if own[0].policy == PROXY:
        means = [_by_unit(values, "bundle") for values in (ours, theirs)]
        found = [means[0][name] - means[1][name] for name in means[0] if name in means[1]]
    else:
        paired = {key: ours[key] - theirs[key] for key in ours if key in theirs}
        found = list(_by_unit(paired, unit).values())
    if not found:
        return None
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    half = student_t(LEVEL, len(found) - 1) * spread / math.sqrt(len(found)) if spread > ROUNDING else None
    return Difference(others[0].policy, len(found), statistics.mean(found), half)


def student_t(level: float, degrees: int) -> float:
    """The t for which Student's distribution has the share `level` between -t and t.

    Closed form for whole degrees of freedom, inverted by bisection of the angle atan(t / sqrt(degrees)).
    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _share_within(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _share_within(angle: float, degrees: int) -> float:
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    # Terms cos^k with k of the parity of `degrees` below it; each is the one before times cos^2 (k - 1) / k.
    term, total = cosine if odd else 1.0, 0.0
    for power in range(odd, degrees - 1, 2):
        if power > odd:
            term *= cosine * cosine * (power - 1) / power
        total += term
    return (angle + sine * total) * 2 / math.pi if odd else sine * total
