"""The statistics of a comparison, against numpy, scipy's paired t-test and printed tables."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from mapolicy.compare.stats import Row, Summary, half_width, share_interval, summarise


def row(policy: str, top1: float, seed: int = 0, bundle: str = "a", arch: str = "n", mode: str | None = None) -> Row:
    seconds, cost = (None, None) if policy == "proxy" else (10.0 + seed, 1.5)
    return Row(arch, policy, mode, seed, bundle, 3, top1, top1 + 1, 400, seconds, cost)


def by_policy(rows: list[Row]) -> dict[str, Summary]:
    return {entry.policy: entry for entry in summarise(rows)}


# Two-sided 5 % points of Student's t, as every table prints them.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 19: 2.093, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize("degrees", TABLE)
def test_half_width_has_the_tables_t(degrees: int) -> None:
    values = np.random.default_rng(degrees).normal(70, 2, degrees + 1)
    error = values.std(ddof=1) / np.sqrt(degrees + 1)
    assert half_width(values.tolist()) / error == pytest.approx(TABLE[degrees], abs=5e-4)


def test_one_bundle_is_paired_by_seed() -> None:
    draws = np.random.default_rng(0)
    values = {name: draws.normal(mean, 2, 5) for name, mean in (("learned", 71), ("none", 60), ("uniform", 70))}
    rows = [row(name, float(value), seed) for name, found in values.items() for seed, value in enumerate(found)]
    summary = by_policy(list(draws.permutation(np.array(rows, dtype=object))))
    assert values["uniform"].mean() > values["none"].mean()
    for name, own in values.items():
        entry = summary[name]
        assert (entry.unit, entry.n, entry.runs) == ("seed", 5, 5)
        assert entry.test_top1 == pytest.approx(own.mean())
        assert entry.test_top5 == pytest.approx(own.mean() + 1)
        assert entry.deviation == pytest.approx(own.std(ddof=1))
        assert entry.sampling_error == pytest.approx(np.sqrt(own * (100 - own) / 400).mean())
        assert entry.seconds == pytest.approx(12)
        for difference in (entry.versus_rival, entry.versus_uniform):
            if name == "uniform":
                assert difference is None
                continue
            expected = stats.ttest_rel(own, values["uniform"]).confidence_interval(0.95)
            assert difference.against == "uniform"
            assert difference.n == 5
            assert difference.mean == pytest.approx((own - values["uniform"]).mean())
            assert difference.interval == pytest.approx(tuple(expected))


def test_several_bundles_are_the_units() -> None:
    """Seeds of a bundle are no independent draws: they are averaged first."""
    draws = np.random.default_rng(1)
    values = {name: draws.normal(70, 2, (4, 3)) for name in ("learned", "uniform")}
    rows = [
        row(name, float(found[b, seed]), seed, f"bundle{b}")
        for name, found in values.items()
        for b in range(4)
        for seed in range(3)
    ]
    entry = by_policy(rows)["learned"]
    means = {name: found.mean(axis=1) for name, found in values.items()}
    assert (entry.unit, entry.n, entry.runs) == ("bundle", 4, 12)
    assert entry.deviation == pytest.approx(means["learned"].std(ddof=1))
    expected = stats.ttest_rel(means["learned"], means["uniform"]).confidence_interval(0.95)
    assert entry.versus_uniform.interval == pytest.approx(tuple(expected))


def test_only_what_both_have_is_paired() -> None:
    rows = [row("learned", 70, 0), row("learned", 80, 1), row("learned", 10, 2)]
    rows += [row("uniform", 69, 0), row("uniform", 77, 1), row("uniform", 99, 3)]
    difference = by_policy(rows)["learned"].versus_uniform
    assert (difference.n, difference.mean) == (2, 2)
    assert by_policy([row("learned", 70, 0), row("uniform", 69, 1)])["learned"].versus_uniform is None


def test_the_rival_is_the_best_that_cost_no_search() -> None:
    values = {"learned": 80, "sampler-only": 90, "weights-only": 85, "none": 60, "randaugment": 72, "uniform": 70}
    summary = by_policy([row(name, value) for name, value in values.items()])
    for name, value in values.items():
        difference = summary[name].versus_rival
        if name == "randaugment":
            assert difference is None
        else:
            assert (difference.against, difference.mean) == ("randaugment", value - 72)
    assert by_policy([row("learned", 80), row("sampler-only", 70)])["learned"].versus_rival is None


def test_networks_and_modes_are_kept_apart() -> None:
    rows = [row("learned", 70, arch=arch, mode=mode) for arch in "ab" for mode in ("frozen", "finetune")]
    rows += [row("uniform", 50, arch="a"), row("none", 60, arch="b")]
    found = [(entry.arch, entry.policy, entry.mode) for entry in summarise(rows)]
    assert found == [(r.arch, r.policy, r.mode) for r in sorted(rows, key=lambda r: r.arch)]
    rivals = {(e.arch, e.mode): e.versus_rival.against for e in summarise(rows) if e.policy == "learned"}
    assert {arch: rivals[arch, mode] for arch, mode in rivals} == {"a": "uniform", "b": "none"}


def test_one_unit_has_no_interval() -> None:
    entry = by_policy([row("learned", 70), row("uniform", 69)])["learned"]
    assert (entry.n, entry.deviation) == (1, None)
    assert entry.versus_rival.half_width is None
    assert entry.versus_rival.interval is None
    assert entry.versus_rival.mean == 1


def test_equal_differences_have_no_interval() -> None:
    """Of test images so few that units tie: no spread is not certainty."""
    right = {"learned": (251, 236, 233), "uniform": (246, 231, 228)}  # of 269 images
    rows = [row(policy, 100 * n / 269, seed) for policy, counts in right.items() for seed, n in enumerate(counts)]
    assert len({100 * ours / 269 - 100 * theirs / 269 for ours, theirs in zip(*right.values(), strict=True)}) > 1
    difference = by_policy(rows)["learned"].versus_uniform
    assert (difference.n, difference.half_width) == (3, None)
    assert difference.mean == pytest.approx(500 / 269)


def test_the_search_itself_is_one_of_its_bundle() -> None:
    """Its seed is the search's: it is compared with the mean over the others' seeds, not with one of them."""
    rows = [row("proxy", 75, seed=0), *(row("uniform", value, seed) for seed, value in enumerate((60, 70, 80)))]
    entry = by_policy(rows)["proxy"]
    assert (entry.unit, entry.n, entry.seconds, entry.cost_ratio) == ("bundle", 1, None, None)
    assert (entry.versus_uniform.mean, entry.versus_uniform.half_width) == (5, None)
    rows += [row("proxy", 78, seed=9, bundle="b"), *(row("uniform", 71, seed, "b") for seed in range(3))]
    rows.append(row("proxy", 99, bundle="of which nothing else is known"))
    difference = by_policy(rows)["proxy"].versus_uniform
    assert (difference.n, difference.mean) == (2, 6)
    assert difference.half_width == pytest.approx(TABLE[1] * np.std([5, 7], ddof=1) / np.sqrt(2), rel=1e-4)


def test_a_summary_is_a_document() -> None:
    rows = [row("learned", 70, mode="frozen"), row("learned", 72, 1, mode="frozen"), row("uniform", 69)]
    rows.append(row("uniform", 70, 1))
    learned, uniform = json.loads(json.dumps([entry.document() for entry in summarise(rows)]))
    assert learned["versus_rival"]["against"] == "uniform"
    low, high = learned["versus_rival"]["interval"]
    assert high - low == pytest.approx(2 * learned["versus_rival"]["half_width"])
    assert uniform["versus_rival"] is None
    assert summarise([]) == []


@pytest.mark.parametrize(("percent", "images"), [(0.0, 10), (50.0, 40), (92.9, 269), (100.0, 7)])
def test_the_interval_of_one_accuracy_is_wilsons(percent: float, images: int) -> None:
    """Its ends are where the score test of the measured share is just significant."""
    low, high = share_interval(percent, images)
    assert 0 <= low <= percent + 1e-9
    assert percent - 1e-9 <= high <= 100
    for end in (low, high):
        if 1e-9 < end < 100 - 1e-9:
            spread = math.sqrt(end / 100 * (1 - end / 100) / images)
            assert abs(percent - end) / 100 / spread == pytest.approx(1.959964, abs=1e-4)
