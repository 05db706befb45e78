"""Sentences about what was learned and checked, against closed forms and planted tables."""

import json
import math

import numpy as np
import pytest

from mapolicy.bundle import findings
from mapolicy.bundle.manifest_levels import Verification, VerifiedPolicy
from mapolicy.transforms.space import OPERATION_NAMES, SPACES
from tests.helpers.bundle_factory import ROWS, UNIFORM_ROWS, draft, draft2, log_levels, verification

SPACE = SPACES["metaaugment-v1"]


def checked(rows=ROWS, **changes) -> Verification:
    return Verification.model_validate(verification(rows, **changes))


def relative(**cells: list[float]) -> np.ndarray:
    """A table of ones, with the rows of some operations replaced."""
    table = np.ones((14, len(next(iter(cells.values())))))
    for name, row in cells.items():
        table[OPERATION_NAMES.index(name)] = row
    return table


def test_relative_frequencies_average_the_second_half_of_the_stages() -> None:
    table = np.zeros((4, 14, 2))
    table[:2] = -9.0  # not looked at
    table[2, 0], table[3, 0] = -0.2, -0.4
    found = findings.relative_frequencies(table, 10.0)
    assert found.mean() == pytest.approx(1)
    assert found[0, 0] / found[1, 0] == pytest.approx(math.exp(-3))
    np.testing.assert_array_equal(findings.relative_frequencies(table, 0.0), np.ones((14, 2)))


@pytest.mark.parametrize(
    ("only_kept", "only_this", "images"), [(12, 2, 100), (2, 12, 100), (5, 5, 272), (0, 0, 10), (10, 0, 10)]
)
def test_the_interval_is_that_of_paired_proportions(only_kept: int, only_this: int, images: int) -> None:
    """Of differences +1, -1 and 0: their mean, and 1.96 standard errors of it."""
    row = VerifiedPolicy(policy="none", strength=None, correct=0, only_kept=only_kept, only_this=only_this)
    found = findings.gain_over(row, images)
    differences = np.array([1.0] * only_kept + [-1.0] * only_this + [0.0] * (images - only_kept - only_this))
    half = 1.96 * differences.std() / math.sqrt(images)
    expected = 100 * np.array([differences.mean(), differences.mean() - half, differences.mean() + half])
    assert np.array([found.points, found.low, found.high]) == pytest.approx(expected, abs=1e-3)


def test_images_that_both_are_right_about_say_nothing() -> None:
    row = VerifiedPolicy(policy="none", strength=None, correct=50, only_kept=9, only_this=5)
    more = row.model_copy(update={"correct": 80})
    assert findings.gain_over(row, 100) == findings.gain_over(more, 100)


def test_neighbouring_levels_are_one_finding() -> None:
    table = relative(Rotate=[0.1, 0.3, 1, 1, 1, 1, 0.2, 0.5], Color=[1, 1, 1, 1, 1, 1, 0.6, 1])
    found = findings.thinned(table, SPACE)
    assert [(each.operation, each.low, each.high) for each in found] == [
        ("Rotate", -10, -5),
        ("Rotate", 5, 10),
        ("Color", 5, 7.5),
    ]
    assert [each.frequency for each in found] == pytest.approx([0.2, 0.35, 0.6])


def test_an_operation_without_a_direction_is_told_once() -> None:
    mirrored = [0.1, 1, 1, 0.1]
    found = findings.thinned(relative(Solarize=mirrored, Posterize=[0.5] * 4, Equalize=[0.3] * 4), SPACE)
    assert [(each.operation, each.low, each.high) for each in found] == [
        ("Solarize", 5, 10),
        ("Equalize", -10, 10),
        ("Posterize", -10, 10),
    ]


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ({"Rotate": [0.25, 1, 1, 1]}, "Rotate at -30 to -15 degrees harms (drawn 0.25 times as often as at random)"),
        ({"Rotate": [0.25] * 4}, "Rotate harms (drawn 0.25 times as often as at random)"),
        ({"Equalize": [0.5] * 4}, "Equalize harms (drawn 0.5 times as often as at random)"),
        (
            {"Solarize": [0.5, 1, 1, 0.5]},
            "Solarize at threshold 128 to 0 harms (drawn 0.5 times as often as at random)",
        ),
        (
            {"Brightness": [0.5, 1, 1, 1]},
            "Brightness at factor 0.1 to 0.55 harms (drawn 0.5 times as often as at random)",
        ),
        (
            {"TranslateX": [1, 1, 1, 0.5]},
            "TranslateX at 0.156 to 0.312 of the side harms (drawn 0.5 times as often as at random)",
        ),
    ],
)
def test_sentences_are_in_the_operations_own_units(cells: dict, sentence: str) -> None:
    (found,) = findings.thinned(relative(**cells), SPACE)
    assert found.sentence(SPACE) == sentence


def test_a_bundle_says_what_it_knows_and_nothing_else() -> None:
    plain = findings.Findings.of(draft(), None)
    assert plain == findings.Findings()
    equal = findings.Findings.of(draft2(search={"settings": {"weighting": "equal"}}), log_levels())
    assert equal.weights.startswith("this policy sees the transformation, not the image")
    assert equal.learned[0].startswith("Rotate at -30 to -15 degrees harms")
    assert equal.verdict.startswith("the learned policy is 8.0 points above trivialaugment")
    assert [name for name, _ in equal.rows][-1] == "learned, strength 15"
    unchecked = findings.Findings.of(draft2(verification=None), log_levels())
    assert (unchecked.verdict, unchecked.rows, unchecked.weights) == ("", (), "")


def test_documents_hold_plain_numbers() -> None:
    levels = findings.levels_document(draft2(), log_levels())
    check = findings.verification_document(draft2())
    assert json.loads(json.dumps([levels, check])) == [levels, json.loads(json.dumps(check))]
    assert np.mean(levels["relative_frequencies"]) == pytest.approx(1)
    assert [row["kept"] for row in check["rows"]] == [False, False, False, True, False]
    assert check["rows"][0]["gain"] == pytest.approx(10)
    assert check["rows"][0]["gain_low"] < 10 < check["rows"][0]["gain_high"]
    assert findings.levels_document(draft(), None) is None
    assert findings.verification_document(draft()) is None


def test_what_was_learned_of_a_table() -> None:
    sentences = findings.what_was_learned(log_levels().astype(np.float64), 30.0, SPACE)
    assert sentences[0].startswith(
        "Rotate at -30 to -15 degrees harms (drawn less than 0.01 times as often as at random)"
    )
    assert sentences[1].startswith("Rotate at 15 to 30 degrees harms")
    harmless = ", ".join(name for name in OPERATION_NAMES if name != "Rotate")
    assert sentences[-1] == f"13 of the 14 operations are harmless at every level: {harmless}"
    assert findings.what_was_learned(log_levels(), 0.0, SPACE) == [
        "no operation is drawn clearly less often than at random at any level"
    ]


def test_a_short_search_does_not_say_what_is_harmless() -> None:
    table = log_levels().astype(np.float64)
    first, *harmful, harmless = findings.what_was_learned(table, 30.0, SPACE, iterations=30)
    too_few = "30 iterations are too few to tell which operations harm, some hundreds are needed"
    assert first == f"{too_few}, so the following may be chance"
    assert all("may harm" in sentence for sentence in harmful)
    assert harmless.startswith("13 of the 14 operations were not seen to harm, which says little: ")
    (only,) = findings.what_was_learned(table, 0.0, SPACE, iterations=199)
    assert only.endswith("some hundreds are needed: so far none is drawn clearly less often than at random")
    assert findings.what_was_learned(table, 30.0, SPACE, iterations=200) == findings.what_was_learned(
        table, 30.0, SPACE
    )


@pytest.mark.parametrize(("effect", "verb"), [(None, "harms"), (0.05, "harms"), (0.01, "may harm"), (0.0, "may harm")])
def test_small_effects_get_softer_words(effect: float | None, verb: str) -> None:
    sentences = findings.what_was_learned(log_levels(), 30.0, SPACE, effect=effect)
    assert sum(f" {verb} (" in sentence for sentence in sentences) == 2
    assert any("may be chance" in sentence for sentence in sentences) == (verb == "may harm")


def test_what_may_be_thinned_by_chance_gets_a_softer_word() -> None:
    table = np.zeros((1, 14, 2))
    table[0, OPERATION_NAMES.index("Rotate"), 0] = -0.1  # drawn exp(-3) times as often
    table[0, OPERATION_NAMES.index("Color"), 0] = -0.03
    found = findings.what_was_learned(table, 30.0, SPACE, effect=0.1)
    assert "Rotate at -30 to 0 degrees harms" in found[0]
    assert "Color at factor 0.1 to 1 may harm" in found[1]


def test_no_difference_has_no_sign_of_its_own() -> None:
    assert str(findings.Gain("none", -0.01, -0.04, 0.0)) == "+0.0 points (95 % interval +0.0 to +0.0)"


def test_the_effect_is_the_larger_of_operations_and_levels() -> None:
    results = {"validation_top1": 50.0, "operation_effects": 0.01, "level_effects": 0.03}
    assert findings.effect_of(draft2(results=results)) == 0.03
    assert findings.effect_of(draft2(results={"validation_top1": 50.0})) is None
    weak = draft2(results=results | {"level_effects": 0.0})
    assert "may harm" in findings.Findings.of(weak, log_levels()).learned[1]
    assert "may harm" in findings.levels_document(weak, log_levels())["learned"][1]


@pytest.mark.parametrize(
    ("rows", "strength", "better"),
    [
        (ROWS, 30.0, None),
        (UNIFORM_ROWS, 0.0, None),
        ([("none", None, 85, 2, 7), ("learned", 30.0, 80, 0, 0)], 30.0, "none"),
    ],
)
def test_the_policy_that_did_better_is_named(rows: list, strength: float, better: str | None) -> None:
    assert findings.better_policy(checked(rows), strength) == better


def test_many_findings_are_cut() -> None:
    table = np.zeros((1, 14, 2))
    table[0, :13] = -0.1 * np.arange(13, 0, -1)[:, None]
    table[0, 5, 0] -= 1
    sentences = findings.what_was_learned(table, 30.0, SPACE, most=3)
    assert len(sentences) == 5
    assert sentences[3].endswith("more ranges of levels are drawn less often than at random")


@pytest.mark.parametrize(
    ("rows", "strength", "says"),
    [
        (
            ROWS,
            30.0,
            "the learned policy is 8.0 points above trivialaugment on 100 held-out images "
            "(95 % interval +0.8 to +15.2)",
        ),
        (
            UNIFORM_ROWS,
            0.0,
            "drawing the operations uniformly is 4.0 points above trivialaugment on 100 held-out images "
            "(95 % interval -1.5 to +9.5; this may be chance)",
        ),
        (
            [("none", None, 85, 2, 7), ("uniform", None, 76, 9, 5), ("learned", 30.0, 80, 0, 0)],
            30.0,
            "nothing beats leaving augmentation out in runs of 2 epochs: the learned policy is 5.0 points below it on "
            "100 held-out images (95 % interval -0.8 to +10.8; this may be chance); "
            "train with --policy none, or longer",
        ),
        (
            [("none", None, 70, 12, 2), ("trivialaugment", None, 90, 2, 12), ("learned", 30.0, 80, 0, 0)],
            30.0,
            "trivialaugment is 10.0 points above the learned policy on 100 held-out images "
            "(95 % interval +2.9 to +17.1); train with --policy trivialaugment",
        ),
        (
            [("trivialaugment", None, 80, 3, 3), ("learned", 30.0, 80, 0, 0)],
            30.0,
            "the learned policy is as good as trivialaugment on 100 held-out images "
            "(95 % interval -4.8 to +4.8; this may be chance)",
        ),
        (
            [("randaugment", None, 79, 3, 2), ("none", None, 70, 12, 2), ("learned", 30.0, 80, 0, 0)],
            30.0,
            "the learned policy is 1.0 points above randaugment on 100 held-out images",
        ),
        (
            [("uniform", None, 30, 0, 0), ("trivialaugment", None, 30, 0, 0), ("learned", 30.0, 30, 0, 0)],
            30.0,
            "every policy is right on the same 30 of 100 held-out images, so this check cannot tell them apart",
        ),
        (
            [("learned", 30.0, 80, 0, 0)],
            30.0,
            "the learned policy was compared with nothing else on 100 held-out images",
        ),
    ],
    ids=[
        "learned best",
        "uniform best",
        "none best",
        "TrivialAugment best",
        "a tie",
        "without it",
        "the same images",
        "alone",
    ],
)
def test_the_verdict(rows: list, strength: float, says: str) -> None:
    assert findings.verdict(checked(rows), strength).startswith(says)


def test_rows_name_the_kept_one_and_what_it_gains() -> None:
    lines = dict(findings.verification_lines(checked(), 30.0))
    assert list(lines) == ["none", "uniform", "trivialaugment", "learned, strength 30", "learned, strength 15"]
    assert lines["learned, strength 30"] == "80.0 %, the bundle's policy"
    assert lines["none"] == "70.0 %; the bundle's policy +10.0 points (95 % interval +2.9 to +17.1)"
    with pytest.raises(ValueError, match="no row of strength 7"):
        findings.verification_lines(checked(), 7.0)


def test_how_it_was_checked_says_whether_the_images_were_seen() -> None:
    seen = findings.how_it_was_checked(checked())
    assert "about half of it" in seen
    assert "verify_per_class=0.1" in seen
    found = findings.how_it_was_checked(checked(unseen=True, epochs=1))
    assert found == (
        "The proxy was trained from scratch under each policy for 1 epoch and measured on 100 held-out images."
    )
