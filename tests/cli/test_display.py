"""Numbers as commands print them."""

import time

import pytest
from mapolicy.cli import display


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (-3, "0:00")])
def test_duration(seconds: float, text: str) -> None:
    assert display.duration(seconds) == text


def test_a_cost_that_was_not_measured_says_so() -> None:
    assert display.ratio(None) == "not measured (too few iterations)"
    assert display.ratio(4.111) == "4.11x a plain step"


def test_what_takes_long_says_what_it_does(capsys: pytest.CaptureFixture) -> None:
    with display.note_if_long("building", seconds=0.01):
        time.sleep(0.2)
    with display.note_if_long("never", seconds=60), display.note_if_long("quiet", quiet=True, seconds=0.01):
        time.sleep(0.05)
    assert capsys.readouterr().err == "mapolicy: building\n"
