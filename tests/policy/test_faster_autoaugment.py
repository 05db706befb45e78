"""Faster AutoAugment's policies: the state of one, written as its repository's tensors are, and what is refused."""

import json
import math
import re
import time
from pathlib import Path

import pytest

from mapolicy.errors import InputError
from mapolicy.policy import faster_autoaugment
from mapolicy.policy.import_policy import import_policy

NAMES = faster_autoaugment.OPERATIONS
PLAIN = {"HorizontalFlip", "Invert", "AutoContrast", "Equalize"}  # without a magnitude


def state(*sub_policies: list[dict[str, float]], magnitude: float = 0.25, probability: float = 0.5) -> dict:
    """A state with these sub-policies; a stage is what it draws, with the chances."""
    found: dict = {"_mean": [0.5] * 3, "_std": [0.5] * 3}
    for position, stages in enumerate(sub_policies):
        for number, chances in enumerate(stages):
            place = f"sub_policies.{position}.stages.{number}"
            # The softmax at 0.05 of 0.05 log c is c; that of -100 is 0.
            found[f"{place}._weights"] = [0.05 * math.log(chances[name]) if name in chances else -100 for name in NAMES]
            for index, name in enumerate(NAMES):
                operation = f"{place}.operations.{index}"
                found |= {f"{operation}._probability": [probability], f"{operation}.temperature": [0.1]}
                found |= {} if name in PLAIN else {f"{operation}._magnitude": [magnitude]}
    return found


def written(tmp_path: Path, found: dict) -> str:
    (tmp_path / "policy.json").write_text(json.dumps(found))
    return str(tmp_path / "policy.json")


def test_stages_draw_as_often_as_their_weights_say(tmp_path: Path) -> None:
    path = written(tmp_path, state([{"Rotate": 0.25, "Saturate": 0.75}, {"Equalize": 1.0}], [{"Invert": 1.0}]))
    manifest = import_policy(path).manifest
    assert manifest.source == "Faster AutoAugment's policy"
    assert len(manifest.sub_policies) == 1000
    first = [steps[0].operation for steps in manifest.sub_policies[:500]]
    assert (first.count("Rotate"), first.count("Color")) == (125, 375)
    assert {steps[1].operation for steps in manifest.sub_policies[:500]} == {"Equalize"}
    assert {len(steps) for steps in manifest.sub_policies[500:]} == {1}
    assert {step.probability for steps in manifest.sub_policies for step in steps} == {0.5}


@pytest.mark.parametrize(
    ("name", "operation", "value", "mirrored"),
    [
        # At magnitude 0.25, from their functions: blends (1 - 2m) image + 2m other; bits floor(8m); threshold 255 m.
        ("ShearX", "ShearX", 0.075, True), ("TranslateY", "TranslateY", 0.1125, True), ("Rotate", "Rotate", 7.5, True),
        ("Solarize", "Solarize", 63.75, False), ("Posterize", "Posterize", 2, False),
        ("Saturate", "Color", -0.5, False), ("Contrast", "Contrast", -0.5, False),
        ("Sharpness", "Sharpness", -0.5, False),
        ("Invert", "Solarize", 0, False), ("AutoContrast", "AutoContrast", 0, False),
    ],
)  # fmt: skip
def test_magnitudes_become_values(name: str, operation: str, value: float, mirrored: bool) -> None:
    made, lost = faster_autoaugment.sequences(state([{name: 1.0}]), "x")
    assert not lost
    (step,) = made[0]
    assert (step.operation, step.value, step.mirrored) == (operation, pytest.approx(value), mirrored)


def test_what_has_no_counterpart_is_named_with_its_share(tmp_path: Path) -> None:
    found = state([{"HorizontalFlip": 0.25, "Contrast": 0.25, "Rotate": 0.5}], magnitude=0.75)
    with pytest.raises(InputError, match=r"50.0% of all draws: Contrast beyond its range, HorizontalFlip") as problem:
        import_policy(written(tmp_path, found))
    assert "add --drop-unknown" in str(problem.value)
    manifest = import_policy(written(tmp_path, found), drop_unknown=True).manifest
    assert "HorizontalFlip: no counterpart, 25.00% of all draws" in manifest.lost
    assert sum(map(len, manifest.sub_policies)) == 500


def changed(name: str, value: object) -> dict:
    return state([{"Rotate": 1.0}, {"Invert": 1.0}]) | {f"sub_policies.0.stages.0.{name}": value}


def without(name: str) -> dict:
    found = state([{"Rotate": 1.0}, {"Invert": 1.0}])
    del found[f"sub_policies.0.stages.{name}"]
    return found


HOSTILE = {
    "14 weights": (changed("_weights", [0.0] * 14), "stages.0._weights: found a list of 14, expected 15 numbers"),
    "weights that are a text": (changed("_weights", "x"), "_weights: found 'x', expected 15 numbers"),
    "a weight of true": (changed("_weights", [True] * 15), "_weights: found True, expected a number"),
    "a weight of 10^9": (changed("_weights", [1e9] * 15), "expected a number"),
    "a magnitude of two": (
        changed("operations.0._magnitude", [1, 2]),
        "_magnitude: found a list of 2, expected a number",
    ),
    "a magnitude missing": (without("0.operations.0._magnitude"), "_magnitude: found None, expected a number"),
    "a probability of text": (changed("operations.3._probability", ["\x1b"]), "_probability: found '\\x1b'"),
    "a stage missing": (without("0._weights"), "found a gap before it, expected all stages"),
    "nine stages": (state([{"Rotate": 1.0}] * 9), "sub-policy 0 stage 8"),
    "a sub-policy missing": (
        {name.replace("policies.0", "policies.3"): value for name, value in changed("_weights", [0.0] * 15).items()},
        "sub-policy 3 stage 0: found a gap before it",
    ),
    "501 sub-policies": (
        {f"sub_policies.{n}.stages.0._weights": [] for n in range(501)},
        "_weights: found a list of 0, expected 15 numbers",
    ),
    "21,000 keys": ({f"sub_policies.{n}.stages.0._weights": 0 for n in range(21_000)}, "more than the 20000 allowed"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_states_are_refused(case: str, tmp_path: Path) -> None:
    found, says = HOSTILE[case]
    path = written(tmp_path, found)
    start = time.process_time()
    with pytest.raises(InputError, match=re.escape(says)) as problem:
        import_policy(path)
    assert time.process_time() - start < 5
    line = f"mapolicy: error: {problem.value}"
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= 240
