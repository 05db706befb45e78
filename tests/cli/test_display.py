"""Numbers as commands print them."""

import pytest
from mapolicy.cli import display


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (-3, "0:00")])
def test_duration(seconds: float, text: str) -> None:
    assert display.duration(seconds) == text


def test_a_cost_that_was_not_measured_says_so() -> None:
    assert display.ratio(None) == "not measured (too few iterations)"
    assert display.ratio(4.111) == "4.11x a plain step"
