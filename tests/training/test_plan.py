"""A search's settings from data, machine and time: tables of cases."""

import re
from dataclasses import replace

import pytest
from mapolicy.cli.planned import parse_budget

from mapolicy import SearchConfig, recipes
from mapolicy.data.profile import DataProfile
from mapolicy.training.plan import (
    ENOUGH_ITERATIONS,
    FITTED,
    LADDER,
    RULES,
    SHARE,
    Costs,
    Machine,
    Outline,
    about,
    choose,
    enough_time,
    fit,
    in_words,
    most_epochs,
    problems,
    seconds,
    too_little_time,
    training_images,
)

CPU, GPU = Machine(), Machine(cuda=True)
SIGNS = DataProfile(names=tuple("0123456789"), sizes=(206,) * 10, side=100)
OMNIGLOT = DataProfile(
    names=tuple(f"character{n}" for n in range(136)), sizes=(20,) * 136, side=105, grey=True, drawn=True
)
DIGITS = DataProfile(names=tuple("0123456789"), sizes=(180,) * 10, side=8, grey=True, drawn=True)
BIRDS = DataProfile(names=("heron", "owl", "rook"), sizes=(2000,) * 3, side=375)
FEW = replace(BIRDS, sizes=(80,) * 3)
TINY = replace(BIRDS, sizes=(20, 20), names=("dark", "light"), side=8)


def config(**changes) -> SearchConfig:
    _, values = recipes.load("search-any")
    return SearchConfig.from_mapping({"dataset": "folder:x", "proxy": "wrn10_1"} | values | changes)


@pytest.mark.parametrize(
    ("data", "machine", "expected"),
    [
        (SIGNS, CPU, {"image_size": 32, "proxy": "wrn10_1", "base_augmentation": "none", "cutout": 0}),
        (SIGNS, GPU, {"image_size": 64, "proxy": "wrn16_2", "model_args": {"stem_stride": 2}}),
        (OMNIGLOT, CPU, {"image_size": 32, "base_augmentation": "none", "cutout": 0, "batch_size": 127}),
        (DIGITS, CPU, {"image_size": 8, "model_args": {}, "base_augmentation": "none"}),
        (DIGITS, GPU, {"image_size": 8, "model_args": {}}),
        (BIRDS, CPU, {"base_augmentation": "flip_crop", "cutout": 16, "model_args": {"stem_stride": 2}}),
        (BIRDS, GPU, {"base_augmentation": "flip_crop", "cutout": 32, "validation_per_class": 0.1}),
        (replace(BIRDS, side=28), CPU, {"image_size": 32}),
        (replace(BIRDS, side=22), CPU, {"image_size": 20, "model_args": {}}),
        (replace(BIRDS, side=3), CPU, {"image_size": 8}),
        (replace(BIRDS, grey=True), CPU, {"base_augmentation": "flip_crop"}),
        (replace(BIRDS, names=("a", "b", "ß")), CPU, {"base_augmentation": "none"}),
        (replace(BIRDS, names=("a", "b", "stop")), CPU, {"base_augmentation": "flip_crop"}),
        (FEW, CPU, {"validation_per_class": 0.25, "batch_size": 28}),
        (replace(BIRDS, sizes=(200,) * 3), CPU, {"validation_per_class": 0.2}),
        (replace(FEW, own_validation=30), CPU, {"validation_per_class": 0.1, "batch_size": 34}),
        (TINY, CPU, {"image_size": 8, "batch_size": 24, "validation_per_class": 0.25}),
    ],
)  # fmt: skip
def test_choices(data: DataProfile, machine: Machine, expected: dict) -> None:
    found, choices = choose(data, machine, config(), ())
    assert {name: getattr(found, name) for name in expected} == expected
    assert all(getattr(found, each.setting) == each.value for each in choices)
    assert all(len(each.reason) < 110 and "\n" not in each.reason for each in choices)
    assert {each.setting for each in choices} <= set(RULES)
    assert 2 <= found.batch_size <= 128


def test_what_the_user_typed_stays() -> None:
    before = config(image_size=48, base_augmentation="none", proxy="resnet18", batch_size=7)
    found, choices = choose(BIRDS, CPU, before, {"image_size", "base_augmentation", "proxy", "batch_size"})
    assert [each.setting for each in choices] == ["cutout"], "another proxy has other arguments"
    assert found == before.with_changes(cutout=0)
    assert choose(BIRDS, CPU, before, RULES) == (before, ())
    weights = config(weights="net.safetensors", image_size=224)
    assert choose(BIRDS, CPU, weights, {"weights"})[0].image_size == 224


@pytest.mark.parametrize(("parts", "images"), [(1, 4500), (8, 4500), (3, 60), (2, 3)])
def test_a_batch_is_divided_by_processes(parts: int, images: int) -> None:
    data = replace(BIRDS, names=("a",), sizes=(images,), own_validation=1, own_test=True)
    found, _ = choose(data, Machine(parts=parts), config(), ())
    assert found.batch_size % parts == 0
    assert found.batch_size >= 2 * parts


def test_training_images_are_what_the_splits_leave() -> None:
    assert training_images(SIGNS, config()) == 10 * (206 - 31 - 21)
    assert training_images(SIGNS, config(train_per_class=20.0)) == 200
    assert training_images(SIGNS, config(train_per_class=20.0, verify_per_class=0.25)) == 150
    assert training_images(SIGNS, config(verify_per_class=4.0)) == 10 * (206 - 31 - 21 - 4)
    assert training_images(replace(SIGNS, own_test=True, own_validation=60), config()) == 2000


# ---- time

CHECKED = {"full": 6, "short": 3}
OUTLINE = Outline(per_epoch=12, training=1540, held_out=210, checked=CHECKED, last_map=(4, 4))
COSTS = Costs(learning=0.08, other=0.03, check=0.03, evaluation=0.1, once=6.0)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (600, {"verification": "full", "meta_every": 1, "epochs": 165}),
        (3600, {"verification": "full", "meta_every": 1, "epochs": 200}),
        (100, {"verification": "full", "meta_every": 1, "epochs": 25}),
        (80, {"verification": "short", "meta_every": 1, "epochs": 30}),
        (65, {"verification": "short", "meta_every": 2, "epochs": 28}),
        (54, {"verification": "short", "meta_every": 6, "epochs": 25}),
        (30, {"verification": "short", "meta_every": 6, "epochs": 12}),
        (17, {"verification": "short", "meta_every": 6, "epochs": 5}),
        (15, {"verify": False, "meta_every": 6, "epochs": 13}),
        (5, {"verify": False, "meta_every": 6, "epochs": 1}),
    ],
)
def test_epochs_follow_from_the_time(budget: float, expected: dict) -> None:
    found, choices = fit(budget, config(), OUTLINE, COSTS, (), 200)
    assert {name: getattr(found, name) for name in expected} == expected
    chosen = {each.setting: each.value for each in choices}
    assert config(**chosen) == found
    assert set(chosen) <= FITTED
    if 1 < found.epochs < 200:
        longer = seconds(found.with_changes(epochs=found.epochs + 1), OUTLINE, COSTS)
        assert seconds(found, OUTLINE, COSTS) <= SHARE * budget < longer


def test_the_fitted_settings_that_are_given_stay() -> None:
    assert fit(60, config(epochs=7), OUTLINE, COSTS, {"epochs"}, 200) == (config(epochs=7), ())
    assert fit(5, config(), OUTLINE, COSTS, {"verify"}, 200)[0].verify, "a check that was asked for stays"
    found, choices = fit(60, config(), OUTLINE, COSTS, {"verification", "meta_every"}, 200)
    assert (found.verification, found.meta_every, len(choices)) == ("full", 1, 1)
    assert found.epochs * OUTLINE.per_epoch < ENOUGH_ITERATIONS
    cheap = config(verification="short", meta_every=3)
    found_cheap, chosen = fit(600, cheap, OUTLINE, COSTS, (), 200)
    assert found_cheap == cheap.with_changes(epochs=200), "a recipe's own is not made dearer"
    assert len(chosen) == 1
    unchecked = replace(OUTLINE, checked={})
    without, chosen = fit(25, config(), unchecked, COSTS, (), 200)
    assert without.verification == "full"
    assert "check" not in chosen[0].reason
    assert fit(60, config(), unchecked, COSTS, (), 200)[0].epochs > found.epochs
    assert fit(1, config(warmup_epochs=5), OUTLINE, COSTS, (), 200)[0].epochs == 6


def test_a_tiny_set_may_have_more_epochs_than_the_recipe() -> None:
    assert most_epochs(config(), OUTLINE, general=True) == 200
    assert most_epochs(config(), replace(OUTLINE, per_epoch=1), general=True) == 2000
    assert most_epochs(config(), replace(OUTLINE, per_epoch=1), general=False) == 200
    found, _ = fit(60, config(), replace(OUTLINE, per_epoch=1), COSTS, (), 20)
    assert found.verification == "full", "20 epochs are all it may have"


def test_the_ladder_goes_down() -> None:
    each = [seconds(config(**rung), OUTLINE, COSTS) for rung in LADDER]
    assert each == sorted(each, reverse=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1s"), (90, "90s"), (119.5, "120s"), (600, "10m"), (601, "11m"), (7200, "2h"), (7300, "2.1h")],
)
def test_time_in_words(seconds: float, text: str) -> None:
    assert in_words(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1s"), (119.0, "119s"), (216.0, "3.6m"), (9000.0, "2.5h")])
def test_time_for_a_sentence(seconds: float, text: str) -> None:
    assert about(seconds) == text


# ---- what cannot work


@pytest.mark.parametrize(
    ("changes", "outline", "parts"),
    [
        ({"epochs": 25}, {}, ()),
        ({"epochs": 24}, {}, ("288 iterations are too few", "give --epochs 25")),
        ({"epochs": 1}, {"per_epoch": 1, "training": 60}, ("1 iteration is too few", "give --epochs 300")),
        ({}, {"per_epoch": 4}, ("4 iterations", "give --batch-size 308")),
        ({}, {"per_epoch": 2, "training": 60}, ()),
        ({}, {"held_out": 49}, ("49 meta-validation images", "validation_per_class")),
        ({}, {"last_map": (1, 1)}, ("1 x 1 at 32 pixels", "--image-size 64")),
        ({}, {"last_map": None}, ()),
    ],
)
def test_a_plan_that_cannot_work_is_told_with_what_to_change(changes: dict, outline: dict, parts: tuple) -> None:
    found = problems(config(**changes), replace(OUTLINE, **outline))
    assert len(found) == bool(parts)
    for part in parts:
        assert part in found[0]


def told_of(budget: float, outline: Outline, costs: Costs, given: set[str], most: int) -> str:
    """What is said of the time, and nothing else is."""
    found, _ = fit(budget, config(), outline, costs, given, most)
    time = too_little_time(budget, found, outline, costs, enough_time(config(), outline, costs, given, most))
    assert problems(found, outline, time) == ((time,) if time else ())
    return time


PHOTOS = Costs(learning=4.0, other=3.5, check=3.6, evaluation=5.0, once=60.0)


@pytest.mark.parametrize("costs", [COSTS, PHOTOS])
@pytest.mark.parametrize("given", [set(), {"verify"}, {"verification"}, {"meta_every"}])
@pytest.mark.parametrize("budget", [3, 20, 60, 120])
def test_the_budget_that_is_advised_is_large_enough(costs: Costs, given: set[str], budget: float) -> None:
    """One sentence with one budget, and with that budget there is nothing left to say; a smaller one is too small."""
    said = told_of(budget, OUTLINE, costs, given, 200)
    if not said:
        return
    (advised,) = re.findall(r": give --budget (\S+)$", said)
    assert told_of(parse_budget(advised), OUTLINE, costs, given, 200) == ""
    assert set(re.findall(r"needs (\d+)", said)) <= {"300"}
    enough, iterations = enough_time(config(), OUTLINE, costs, given, 200)
    assert iterations == ENOUGH_ITERATIONS
    assert told_of(0.99 * enough, OUTLINE, costs, given, 200)


def test_what_does_not_fit_is_one_sentence() -> None:
    assert told_of(30, OUTLINE, COSTS, set(), 200) == (
        "only 144 iterations fit into 30s, and a search needs 300: give --budget 53s"
    )
    assert told_of(15, OUTLINE, COSTS, set(), 200) == (
        "only 156 iterations and no check fit into 15s, and a search needs 300: give --budget 53s"
    )
    assert told_of(3, OUTLINE, COSTS, set(), 200) == (
        "even 12 iterations and no check take about 7s, not 3s, and a search needs 300: give --budget 53s"
    )


def test_a_recipe_that_is_short_needs_no_more_than_its_epochs() -> None:
    assert "give --budget" in told_of(10, OUTLINE, COSTS, {"verify"}, 2)
    found, _ = fit(60, config(), OUTLINE, COSTS, (), 2)
    assert found.epochs == 2
    enough = enough_time(config(), OUTLINE, COSTS, (), 2)
    assert too_little_time(60, found, OUTLINE, COSTS, enough) == ""
    assert "give --epochs 25" in problems(found, OUTLINE, "")[0]
