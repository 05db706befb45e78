"""AutoAlbument's JSON: values against what albumentations does to pixels, chances against the file's, odd files."""

import copy
import json
from collections import Counter

import numpy as np
import pytest
import torch

from mapolicy.bundle.dataset_level import Step
from mapolicy.errors import InputError
from mapolicy.policy.autoalbument import SEQUENCES, sequences
from mapolicy.transforms.functional import OPERATIONS

FUNCTIONS = {operation.name: operation.function for operation in OPERATIONS}


def transform(name: str, **settings) -> dict:
    return {"__class_fullname__": f"albumentations.augmentations.transforms.{name}", "always_apply": False, **settings}


def moved(**limits) -> dict:
    still = {key: [0, 0] for key in ("shift_limit_x", "shift_limit_y", "scale_limit", "rotate_limit")}
    return transform("ShiftScaleRotate", **still | {key: [value, value] for key, value in limits.items()})


ROTATE = (moved(rotate_limit=90), 0.5)
FLIP = transform("HorizontalFlip")
NOTHING = transform("NoOp")


def stage(*members) -> dict:
    return transform("OneOf", transforms=[part | {"p": chance} for part, chance in members], p=1)


def document(*sub_policies: list[dict], chances: list[float] | None = None) -> dict:
    parts = [
        transform("Sequential", transforms=stages, p=chance)
        for stages, chance in zip(sub_policies, chances or [0.1] * len(sub_policies), strict=True)
    ]
    normalise = transform("Normalize", mean=[0.5], std=[0.5])
    around = [transform("OneOf", transforms=parts, p=1), normalise, transform("ToTensorV2")]
    return {"__version__": "0.5.1", "transform": transform("Compose", transforms=around, p=1.0)}


def single(part: dict) -> Step:
    made, lost = sequences(document([stage((part, 1.0))]), "x")
    assert lost == {}
    assert {tuple(row) for row in made} == {(made[0][0],)}
    return made[0][0]


def applied(step: Step, image: np.ndarray) -> np.ndarray:
    value = torch.tensor([step.value], dtype=torch.float64)
    assert (step.probability, step.mirrored) == (1.0, False)
    return FUNCTIONS[step.operation](torch.from_numpy(image)[None, None], value, torch.zeros(1).byte())[0, 0].numpy()


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (8, 8), dtype=np.uint8)


def test_shifts_move_the_image_right_and_down(image: np.ndarray) -> None:
    right = applied(single(moved(shift_limit_x=0.25)), image)
    np.testing.assert_array_equal(right, np.pad(image, ((0, 0), (2, 0)))[:, :8])
    up = applied(single(moved(shift_limit_y=-0.5)), image)
    np.testing.assert_array_equal(up, np.pad(image, ((0, 4), (0, 0)))[4:])


def test_rotation_is_counter_clockwise(image: np.ndarray) -> None:
    np.testing.assert_array_equal(applied(single(moved(rotate_limit=90)), image), np.rot90(image))


def test_contrast_is_about_black(image: np.ndarray) -> None:
    part = transform("RandomBrightnessContrast", brightness_limit=[0, 0], contrast_limit=[1.5, 1.5])
    found = applied(single(part), image)
    assert np.abs(found - np.clip(image * 2.5, 0, 255)).max() <= 1


def test_solarize_inverts_from_the_threshold_on(image: np.ndarray) -> None:
    found = applied(single(transform("Solarize", threshold=[128, 128])), image)
    np.testing.assert_array_equal(found, np.where(image < 128, image, 255 - image))


def test_chances_are_the_files(image: np.ndarray) -> None:
    """OneOf draws by p over the sum of p, sub-policies too; what is unknown is nothing, and is counted."""
    first = stage((moved(rotate_limit=30), 0.3), (FLIP, 0.2), (NOTHING, 0.1))
    second = stage((moved(shift_limit_x=0.5), 2.0), (moved(shift_limit_y=0.5), 1.0), (NOTHING, 1.0))
    made, lost = sequences(document([first, second], [second], chances=[0.3, 0.1]), "x")
    assert len(made) == SEQUENCES
    assert lost == {"HorizontalFlip": pytest.approx(0.75 / 2 / 3)}
    of_the_first, of_the_second = made[:750], made[750:]
    count = Counter(step.operation for row in of_the_first for step in row)
    assert count == {"Rotate": 375, "TranslateX": 375, "TranslateY": 188}
    assert Counter(step.operation for row in of_the_second for step in row) == {"TranslateX": 125, "TranslateY": 63}
    both = sum([step.operation for step in row] == ["Rotate", "TranslateX"] for row in of_the_first)
    assert both == pytest.approx(750 / 4, rel=0.15), "stages are independent"
    assert made == sequences(document([first, second], [second], chances=[0.3, 0.1]), "x")[0], "the same each time"


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (FLIP, "HorizontalFlip"),
        (transform("RGBShift", r_shift_limit=[3, 3]), "RGBShift"),
        (transform("RandomBrightnessContrast", brightness_limit=[0.5, 0.5], contrast_limit=[0, 0]), "brightness"),
        (transform("RandomBrightnessContrast", brightness_limit=0, contrast_limit=[9.5, 9.5]), "beyond its range"),
        (moved(scale_limit=0.5), "scaling"),
        (moved(scale_limit=0.5, rotate_limit=9), "shift, scaling and rotation at once"),
        (moved(rotate_limit=200), "ShiftScaleRotate beyond its range"),
        (transform("Solarize", threshold=[1, 2]), "Solarize of a range"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_named(part: dict, name: str) -> None:
    made, lost = sequences(document([stage((part, 1.0))]), "x")
    assert not any(made)
    ((found, share),) = lost.items()
    assert found.startswith(name) or found.endswith(name)
    assert share == pytest.approx(1)


def test_nothing_that_is_moved_by_nothing() -> None:
    assert sequences(document([stage((moved(), 1.0))]), "x") == ([[]] * SEQUENCES, {})


VALID = document([stage(ROTATE, (NOTHING, 0.5))])
PARTS, SUB = ["transform", "transforms"], ["transform", "transforms", 0, "transforms"]
STAGES, P = [*SUB, 0, "transforms"], [*SUB, 0, "p"]
MEMBERS = [*STAGES, 0, "transforms"]
LIMIT = [*MEMBERS, 0, "rotate_limit"]
TOO_MANY = [transform("Sequential", transforms=[], p=1)] * 501
ODD = {
    "no transform": (["transform"], None, "transform: found None, expected a Compose"),
    "a list": (["transform"], [], "transform: found a list of 0"),
    "no class": (["transform", "__class_fullname__"], 7, "transform: __class_fullname__: found 7"),
    "an odd class": (["transform", "__class_fullname__"], "evil\x1b", "found 'evil\\x1b', expected a transform's"),
    "not composed": (["transform", "__class_fullname__"], "a.OneOf", "transform: found OneOf, expected a Compose"),
    "no sub-policies": (PARTS, [], "transform: found 0 of OneOf, expected one"),
    "numbers for sub-policies": (SUB, [1], "sub-policies: found OneOf, expected"),
    "an empty list": (SUB, [], "sub-policies: found 0, expected 1 to 500"),
    "too many": (SUB, TOO_MANY, "sub-policies: found 501"),
    "a chance that is a text": (P, "1", "sub-policies: p: found '1', expected a number"),
    "a chance that is true": (P, True, "found True, expected a number"),
    "no chance": (P, 0, "sub-policies: p: found no chance"),
    "a chance below 0": (P, -1, "sub-policies: p: found no chance"),
    "no stages": (STAGES, [], "sub-policy 0: found 0 stages, expected 1 to 8"),
    "nine stages": (STAGES, [stage(ROTATE)] * 9, "found 9 stages"),
    "a stage without members": (MEMBERS, [], "stage 0: p: found no chance"),
    "a value that is a text": (LIMIT, "9", "stage 0 ShiftScaleRotate: rotate_limit: found '9', expected a number"),
    "a value of three": (LIMIT, [1, 2, 3], "rotate_limit: found a list of 3"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_files_are_refused_in_one_line(case: str) -> None:
    path, value, says = ODD[case]
    found = copy.deepcopy(VALID)
    part = found
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(InputError) as problem:
        sequences(json.loads(json.dumps(found)), "x")
    line = str(problem.value)
    assert says in line
    assert line.isascii()
    assert line.isprintable()
    assert len(f"mapolicy: error: {line}") <= 240
