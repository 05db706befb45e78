"""How much of a check fits into a time: tables of cases."""

import time

import pytest

from mapolicy.distributed import Communicator
from mapolicy.training.pace import Deadline, Extent, fitting

KEYS = ("learned 3", "uniform", "trivialaugment", "learned 1.5", "none", "randaugment")


@pytest.mark.parametrize(
    ("left", "keys", "expected"),
    [
        (60.0, KEYS, Extent(20)),
        (59.0, KEYS, Extent(20, ("randaugment",))),
        (30.0, KEYS, Extent(20, ("learned 1.5", "none", "randaugment"))),
        (29.0, KEYS, Extent(19, ("learned 1.5", "none", "randaugment"))),
        (15.0, KEYS, Extent(10, ("learned 1.5", "none", "randaugment"))),
        (14.0, KEYS, Extent(0, KEYS)),
        (-5.0, KEYS, Extent(0, KEYS)),
        (30.0, KEYS[:3], Extent(20)),
        (15.0, KEYS[:3], Extent(10)),
        (20.0, KEYS[1:3], Extent(20)),
    ],
)
def test_a_check_shrinks_with_the_time(left: float, keys: tuple[str, ...], expected: Extent) -> None:
    """Each training takes 10 seconds for its 20 epochs."""
    found = fitting(left, 10.0, keys, 20)
    assert found == expected
    done = len(keys) - len(found.left_out)
    assert done * 10.0 * found.epochs / 20 <= max(0.0, left)


def test_a_training_has_its_warm_up() -> None:
    assert fitting(20.0, 10.0, KEYS, 20, fewest=13).epochs == 13
    assert fitting(19.0, 10.0, KEYS, 20, fewest=13).epochs == 0


def test_what_was_cut_is_told() -> None:
    assert Extent(20).told(20) == ""
    assert Extent(20, ("none",)).told(20) == "the check leaves out none, so that it ends in time"
    assert Extent(12).told(20) == "the check trains for 12 of 20 epochs, so that it ends in time"
    both = Extent(12, ("none", "randaugment")).told(20)
    assert both == "the check leaves out none, randaugment and trains for 12 of 20 epochs, so that it ends in time"
    assert "not checked" in Extent(0, KEYS).told(20)


@pytest.mark.parametrize(
    "content", [None, [], {"epochs": 3}, {"epochs": "3", "left_out": []}, {"epochs": -1, "left_out": []}]
)
def test_an_extent_of_a_damaged_file_is_none(content: object) -> None:
    assert Extent.from_json(content) is None
    assert Extent.from_json({"epochs": 3, "left_out": ["none"]}) == Extent(3, ("none",))


def test_time_is_told_by_the_clock() -> None:
    assert 9.0 < Deadline(time.monotonic() + 10, Communicator()).left() <= 10.0
    late = Deadline(time.monotonic() - 10, Communicator())
    assert late.left() < -9.0
    assert (late.rows(1.0), late.rows(1.0, at_least=2)) == (0, 2)
    assert Deadline(time.monotonic() + 10, Communicator()).rows(3.0) == 3
