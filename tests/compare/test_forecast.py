"""What a comparison says of its trainings and their time."""

from dataclasses import replace

import pytest

from mapolicy.compare.forecast import ComparisonForecast, TrainingsForecast

ROW = TrainingsForecast(
    "resnet18", "none", trainings=6, iterations=10, seconds_per_iteration=2.0, evaluation_seconds=3.0
)
EXPECTED = ComparisonForecast(
    networks=1, policies=2, splits=1, seeds=3, finished=0, tests=0, rows=[ROW], at_a_time=1, loading_seconds=4.0
)


@pytest.mark.parametrize(
    ("tests", "finished", "text"),
    [
        (0, 0, "6: 1 network x 2 policies x 3 seeds"),
        (1, 0, "6: 1 network x 2 policies x 3 seeds; the proxy is tested as one more run"),
        (2, 3, "6: 1 network x 2 policies x 3 seeds, 3 of them finished before; 2 proxies are tested as well"),
    ],
)
def test_runs_that_train_nothing_are_told_apart(tests: int, finished: int, text: str) -> None:
    assert replace(EXPECTED, tests=tests, finished=finished).trainings_in_words() == text


def test_a_training_loads_and_evaluates_too() -> None:
    assert EXPECTED.seconds_of(ROW) == 4 + 10 * 2 + 3
    assert EXPECTED.seconds == 6 * 27
    assert EXPECTED.seconds_of(replace(ROW, seconds_per_iteration=None)) is None
