"""Schedules of Population Based Augmentation: every form that is read, and what is refused."""

import json
import re
import time
from pathlib import Path

import pytest

from mapolicy.errors import InputError, UsageError
from mapolicy.policy import pba
from mapolicy.policy.import_policy import import_policy

NOTHING = [0] * 60


def numbers(**chosen: tuple[int, int]) -> list[int]:
    """A policy of whole numbers in which only these operations are taken, the first time they are named."""
    found = list(NOTHING)
    for name, (tenths, level) in chosen.items():
        place = 2 * pba.OPERATIONS.index(name)
        found[place : place + 2] = [tenths, level]
    return found


ROTATE, SHEAR = numbers(Rotate=(5, 9)), numbers(ShearX=(10, 3), Cutout=(10, 5))
LOG = [
    ["3", "1", 9, 10, NOTHING, ROTATE],
    ["7", "3", 31, 30, ROTATE, SHEAR],
]
WITH_TABLES = [[*row[:4], {"hp_policy": row[4], "lr": 0.1, "use": True}, {"hp_policy": row[5]}] for row in LOG]


def lines(rows: list, spelled) -> str:
    return "".join(f"{spelled(row)}\n" for row in rows)


FORMS = {
    "log": lines(LOG, repr),
    "log in JSON": lines(LOG, json.dumps),
    "log with tables": lines(WITH_TABLES, repr),
    "log with tables in JSON": lines(WITH_TABLES, json.dumps),
    "log after another trial's lines": lines([["2", "5", 3, 4, NOTHING, SHEAR], *LOG], repr),
    "parts": json.dumps([[10, NOTHING], [20, ROTATE], [10, SHEAR]]),
    "parts in Python": repr([(10, NOTHING), (20, ROTATE), (10, SHEAR)]),
    "parts of steps": repr(
        [(10, []), (20, [("Rotate", 0.5, 9)]), (10, [("ShearX", 1.0, 3), ("Cutout", 1, 5), ("Color", 0, 5)])]
    ),
    "epochs": json.dumps([NOTHING] * 10 + [ROTATE] * 20 + [SHEAR] * 10),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_stages(form: str, tmp_path: Path) -> None:
    (tmp_path / "schedule.txt").write_text(FORMS[form])
    manifest = import_policy(str(tmp_path / "schedule.txt"), epochs=40).manifest
    assert manifest.sub_policies == ()
    assert [stage.until for stage in manifest.stages] == [0.25, 0.75, 1.0]
    assert {stage.counts for stage in manifest.stages} == {(0.2, 0.3, 0.5)}
    nothing, (rotate,), (shear, identity) = (stage.steps for stage in manifest.stages)
    assert nothing == ()
    assert (rotate.operation, rotate.probability, rotate.value, rotate.mirrored) == ("Rotate", 0.5, 27.0, True)
    assert (shear.operation, shear.probability, shear.value, shear.mirrored) == ("ShearX", 1.0, 0.09, True)
    assert (identity.operation, identity.probability, identity.value) == ("Identity", 1.0, 0.0)
    # Stage 2 takes Rotate in 0.8 x 0.5 of the images, stage 3 one of two in 0.3 and both in 0.5.
    share = 0.25 * (0.15 + 0.5) / (0.5 * 0.4 + 0.25 * 1.3)
    assert manifest.lost == (f"Cutout: no counterpart, {share:.2%} of all draws; Identity takes its turn",)


def test_one_policy_for_the_whole_run(tmp_path: Path) -> None:
    (tmp_path / "schedule").write_text(repr(ROTATE))
    (stage,) = import_policy(str(tmp_path / "schedule")).manifest.stages
    assert (stage.until, len(stage.steps)) == (1.0, 1)


@pytest.mark.parametrize(
    ("name", "level", "operation", "value", "mirrored"),
    [
        # Theirs: int(30 * level / 10) degrees, 4 - int(4 * level / 10) bits kept, 256 - int(25.6 * level), 0.1 + 0.18
        # * level less our 1, int(level) of 32 pixels, 0.03 * level.
        ("Rotate", 7, "Rotate", 21, True), ("Rotate", 0, "Rotate", 0, False), ("Posterize", 0, "Posterize", 4, False),
        ("Posterize", 9, "Posterize", 7, False), ("Posterize", 10, "Posterize", 7, False),
        ("Solarize", 3, "Solarize", 256 - 76, False), ("Color", 0, "Color", -0.9, False),
        ("Sharpness", 10, "Sharpness", 0.9, False), ("TranslateY", 9, "TranslateY", 9 / 32, True),
        ("ShearY", 10, "ShearY", 0.3, True), ("Invert", 4, "Solarize", 0, False), ("Equalize", 4, "Equalize", 0, False),
    ],
)  # fmt: skip
def test_levels_become_values(name: str, level: int, operation: str, value: float, mirrored: bool) -> None:
    ((step,),) = (stage.steps for stage in pba.stages_of_list(numbers(**{name: (10, level)}), "x"))
    assert (step.operation, step.value, step.mirrored) == (operation, pytest.approx(value), mirrored)


@pytest.mark.parametrize(
    ("name", "epochs", "ends"), [("pba-cifar10", 200, [12, 34, 54]), ("pba-svhn", 160, [9, 24, 30])]
)
def test_the_published_schedules(name: str, epochs: int, ends: list[int]) -> None:
    stages = import_policy(name).manifest.stages
    assert [round(stage.until * epochs, 5) for stage in stages[:3]] == ends
    assert stages[0].steps == ()
    # After the start, nearly every image gets as many operations as were drawn: 0.3 x 1 + 0.5 x 2.
    assert sum(stages[-1].uses()) == pytest.approx(1.3, abs=1e-3)


def test_a_log_needs_the_length_of_its_search(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(FORMS["log"])
    with pytest.raises(UsageError, match=r"does not say how many epochs.*add --epochs N"):
        import_policy(str(tmp_path / "log.txt"))
    with pytest.raises(UsageError, match="--epochs: 29 is less than the 30"):
        import_policy(str(tmp_path / "log.txt"), epochs=29)
    with pytest.raises(UsageError, match=r"pba-mars: is not a policy that is known; name .*pba-cifar10, pba-svhn"):
        import_policy("pba-mars")


def changed(row: list, place: int, value: object) -> str:
    return lines([[*row[:place], value, *row[place + 1 :]]], repr)


HOSTILE = {
    "a line of code": ("['3', __import__('os'), 1, 1, [], []]", "line 1 is not JSON"),
    "a call": ("['3', '1', 9, 10, [0] * 60, [0]]", "line 1: found '*', expected a log's characters"),
    "an escape": ("['3', '1', 9, 10, ['\x1b'], [0]]", "expected a log's characters"),
    "five parts": (changed(LOG[0][:5], 2, 9), "line 1: found a list of 5, expected a list of 6"),
    "a trial that is a number": (changed(LOG[0], 1, 1), "line 1: found 1, expected a trial's name"),
    "an epoch of true": (changed(LOG[0], 3, True), "line 1: epoch: found True, expected a whole number"),
    "an epoch below 0": (changed(LOG[0], 3, -1), "epoch: found -1"),
    "an epoch of 10^30": (changed(LOG[0], 3, 10**30), "epoch: found 1000"),
    "59 numbers": (changed(LOG[0], 5, [0] * 59), "line 1: found 59 numbers, expected 60"),
    "a level of 11": (changed(LOG[0], 5, numbers(Rotate=(1, 11))), "step 3: level: found 11, expected a number from 0"),
    "a probability of 11": (changed(LOG[0], 5, numbers(Rotate=(11, 1))), "found 11, expected a whole number from 0 to"),
    "a level of true": (changed(LOG[0], 5, [0, True, *NOTHING[2:]]), "level: found True"),
    "a table without a policy": (changed(LOG[0], 5, {"lr": 1}), "line 1: found None, expected a policy"),
    "a key twice": ("['3', '1', 9, 10, {'hp_policy': [], 'hp_policy': []}, []]", "has the key 'hp_policy' twice"),
    "a table of 300 keys": (changed(LOG[0], 5, {str(n): 1 for n in range(300)}), "more than the 200 allowed"),
    "epochs that descend": (lines([LOG[0], ["7", "3", 5, 5, ROTATE, SHEAR]], repr), "do not ascend"),
    "10,001 lines": (lines([LOG[0]], repr) + "[]\n" * 10_000, "more than the 10000 allowed"),
    "30,000 lists": ("['3', '1', 9, 10, [" + "[]," * 30_000 + "0], []]", "more than the 20000 allowed"),
    "deep": ("['3', '1', 9, 10, " + "[" * 9000 + "]" * 9000 + ", []]", "nested deeper than"),
    "NaN": ("[[10, [['Rotate', NaN, 1]]]]", "has the number NaN"),
    "a part without a policy": ("[[10, 7]]", "part 0: found 7, expected a policy"),
    "a part of 0 epochs": ("[[0, [['Rotate', 1, 1]]]]", "part 0: epochs: found 0, expected a whole number from 1"),
    "three parts of a part": ("[[10, [], []]]", "part 0: found a list of 3, expected epochs and a policy"),
    "an operation unknown": ("[[10, [['Flip', 1, 1]]]]", "part 0 step 0: operation: found 'Flip', expected one of the"),
    "an operation that is a number": ("[[10, [[7, 1, 1]]]]", "operation: found 7, expected one of the"),
    "a probability of 1.5": ("[[10, [['Rotate', 1.5, 1]]]]", "probability: found 1.5, expected a number from 0 to 1"),
    "65 steps": (repr([[10, [["Rotate", 1, 1]] * 65]]), "part 0: found 65 steps, expected at most 64"),
    "nothing is taken": (repr(NOTHING), "no step of it is ever taken"),
    "257 stages": (repr([[1, [["Rotate", 1, n % 2]]] for n in range(257)]), "more than the 256 allowed"),
    "a mixed list": (repr([1, *NOTHING[1:-1], [1]]), "found a list of 1"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str, tmp_path: Path) -> None:
    text, says = HOSTILE[case]
    (tmp_path / "x").write_text(text)
    start = time.process_time()
    with pytest.raises(InputError, match=re.escape(says)) as problem:
        import_policy(str(tmp_path / "x"), epochs=40)
    assert time.process_time() - start < 5, "a fraction of a second"
    line = f"mapolicy: error: {problem.value}"
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= 240
