"""Means, standard deviations and paired differences with intervals over the rows of a comparison. No torch.

Differences are paired within a unit and averaged over units. With one bundle the unit is the seed. With several the
unit is the bundle (the mean over its seeds), because the seeds of one bundle share its split and its policy.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..registries import ZERO_COST_POLICIES

LEVEL = 0.95
PROXY = "proxy"
ROUNDING = 1e-9  # percentage points; one of a million test images is 1e-4


@dataclass(frozen=True)
class Row:
    """The result of one job.

    Attributes:
        arch: timm name of the network.
        policy: name of the policy; `proxy` is the search's own network, `dataset-level-DIGITS` the dataset-level policy
            with that digest.
        mode: frozen or finetune; None for a policy that has no modes.
        seed: seed of the run.
        bundle: short digest of the bundle that provides the split; `splitSEED` if the settings draw it.
        epochs: passes over the training split.
        test_top1, test_top5: per cent.
        test_images: size of the test split.
        seconds: wall-clock time of the run; None for the proxy, whose bundle does not record it.
        cost_ratio: time of an iteration over that of a plain step; None if it was not measured.
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
    """Mean of paired differences in test top-1, percentage points.

    Attributes:
        against: the other policy.
        n: number of units that have both policies.
        mean: over the units.
        half_width: half the width of the 95 % interval of the mean. A smaller difference is not significant. None for
            one unit, and if all units have the same difference.
    """

    against: str
    n: int
    mean: float
    half_width: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper end; None without a half width."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


@dataclass(frozen=True)
class Summary:
    """The rows of one network with one policy.

    Attributes:
        arch, policy, mode, epochs: as in `Row`.
        unit: `seed` or `bundle`.
        n: number of units.
        runs: number of rows.
        test_top1, test_top5: means over units, per cent.
        deviation: standard deviation of the units' top-1 (n - 1 in the denominator); None for one unit.
        sampling_error: standard error of one run's top-1 from the number of its test images alone (binomial),
            percentage points.
        versus_rival: difference to the best baseline, which is the policy with the highest mean top-1 among the
            compared ones that need no search. The best is chosen on the test split, which favours it. None for the best
            baseline itself.
        versus_uniform: difference to `uniform`, the same operations with equal probabilities and weights; None without
            such rows.
        seconds, cost_ratio: means over rows.
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
        """Plain values, for JSON; a difference includes its interval."""
        found = asdict(self)
        for name in ("versus_rival", "versus_uniform"):
            difference = getattr(self, name)
            if difference is not None:
                found[name]["interval"] = None if difference.interval is None else list(difference.interval)
        return found


Key = tuple[str, str | None]


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """A summary for each network, policy and mode, in order of first appearance."""
    rows = list(rows)
    unit = "bundle" if len({row.bundle for row in rows}) > 1 else "seed"
    groups: dict[str, dict[Key, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.arch, {}).setdefault((row.policy, row.mode), []).append(row)
    return [
        _summary(own, of_arch, _best_baseline(of_arch, unit), unit)
        for of_arch in groups.values()
        for own in of_arch.values()
    ]


def _best_baseline(of_arch: Mapping[Key, Sequence[Row]], unit: str) -> Key | None:
    """The policy with the highest mean top-1 among those that need no search; None if there is no such policy."""
    means = {
        key: statistics.mean(_by_unit({(row.bundle, row.seed): row.test_top1 for row in own}, unit).values())
        for key, own in of_arch.items()
        if key[0] in ZERO_COST_POLICIES
    }
    return max(means, key=means.__getitem__) if means else None


def _summary(own: Sequence[Row], of_arch: Mapping[Key, Sequence[Row]], best: Key | None, unit: str) -> Summary:
    first = own[0]
    # A search's seed sets another batch order and other initial weights than the same seed of a training.
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
        versus_rival=None if best in (None, key) else _difference(own, of_arch[best], unit),
        versus_uniform=None if key == _UNIFORM else _difference(own, of_arch.get(_UNIFORM, ()), unit),
        seconds=statistics.mean(seconds) if seconds else None,
        cost_ratio=statistics.mean(ratios) if ratios else None,
    )


_ACCURACIES = ("test_top1", "test_top5")
_UNIFORM: Key = ("uniform", None)


def _by_unit(values: Mapping[tuple[str, int], float], unit: str) -> dict[object, float]:
    """The mean of each unit, from values by bundle and seed."""
    units: dict[object, list[float]] = {}
    for (bundle, seed), value in values.items():
        units.setdefault(bundle if unit == "bundle" else seed, []).append(value)
    return {name: statistics.mean(found) for name, found in units.items()}


def _difference(own: Sequence[Row], others: Sequence[Row], unit: str) -> Difference | None:
    """The paired difference over the units that both have; None if they share none."""
    ours, theirs = ({(row.bundle, row.seed): row.test_top1 for row in rows} for rows in (own, others))
    if own[0].policy == PROXY:
        means = [_by_unit(values, "bundle") for values in (ours, theirs)]
        found = [means[0][name] - means[1][name] for name in means[0] if name in means[1]]
    else:
        paired = {key: ours[key] - theirs[key] for key in ours if key in theirs}
        found = list(_by_unit(paired, unit).values())
    if not found:
        return None
    return Difference(others[0].policy, len(found), statistics.mean(found), half_width(found))


def share_interval(percent: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy that was measured once, from the number of images alone.

    Wilson's score interval (1927), per cent. It says nothing about other seeds and splits.
    """
    share, z = percent / 100, statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean, by Student's t with n - 1 degrees of freedom.

    None for a single value, and for equal values: they say nothing about how much other values would differ.
    """
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    if spread <= ROUNDING:
        return None
    from scipy.stats import t  # late: it takes a second to import

    return float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
