"""Interleaved timing on a clock of the test's own: order, warm-up, ratios, errors, and the report."""

import pytest
import torch

from mapolicy.bench.interleaved import WARM_UP, Candidate, Clock, measure, quartiles
from mapolicy.bench.report import Report
from mapolicy.errors import TrainingError

CPU = torch.device("cpu")


class FakeClock:
    """A clock that only the candidates' work advances."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def clock(self) -> Clock:
        return Clock("seconds that the test makes up", lambda: self.now)

    def candidate(self, what: str, seconds: list[float], calls: int = 1) -> Candidate:
        """Takes these seconds, call by call; the first ones belong to the warm-up."""
        durations = iter(seconds)

        def work(call: int) -> None:
            self.calls.append((what, call))
            self.now += next(durations)

        return Candidate(what, work, calls, {"colour": what})


def test_rounds_are_interleaved_and_the_warm_up_is_not_counted() -> None:
    fake = FakeClock()
    candidates = [fake.candidate("a", [100, 1, 1]), fake.candidate("b", [100, 100, 2, 2, 2, 2], calls=2)]
    reported: list[str] = []
    rows = measure(candidates, "a", 2, fake.clock(), reported.append, "letters")
    a, b = [("a", 0), ("b", 0), ("b", 1)], [("a", 1), ("b", 2), ("b", 3)]
    assert fake.calls == [*a, *b, ("a", 2), ("b", 4), ("b", 5)]
    assert WARM_UP == 1
    assert reported == ["letters: warming up", "letters: round 1 of 2", "letters: round 2 of 2"]
    assert [(row.what, row.median_ms, row.n, row.against) for row in rows] == [("a", 1000, 2, "a"), ("b", 2000, 2, "a")]
    assert rows[1].facts == {"colour": "b"}


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """The machine slows down ten times on the way: b is always 3 a, but for one disturbed round."""
    fake = FakeClock()
    candidates = [fake.candidate("a", [9, 1, 2, 4, 8, 10]), fake.candidate("b", [9, 3, 6, 12, 24, 10])]
    plain, row = measure(candidates, "a", 5, fake.clock())
    assert (row.ratio_low, row.ratio, row.ratio_high) == (3, 3, 3)
    assert (plain.ratio_low, plain.ratio, plain.ratio_high) == (1, 1, 1)
    assert (row.low_ms, row.median_ms, row.high_ms) == (6000, 10_000, 12_000)
    assert (plain.low_ms, plain.median_ms, plain.high_ms) == (2000, 4000, 8000)
    # The ratio of the medians is another number.
    assert row.median_ms / plain.median_ms == 2.5
    assert row.document() == {
        "what": "b", "median_ms": 10_000, "low_ms": 6000, "high_ms": 12_000, "ratio": 3, "ratio_low": 3,
        "ratio_high": 3, "against": "a", "n": 5, "colour": "b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [([7], (7, 7, 7)), ([1, 2], (1.25, 1.5, 1.75)), ([4, 1, 3, 2], (1.75, 2.5, 3.25)), ([5, 1, 4, 2, 3], (2, 3, 4))],
)
def test_quartiles(values: list[float], expected: tuple[float, ...]) -> None:
    assert quartiles(values) == expected


@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPU: can't allocate memory")])
def test_memory_that_runs_out_is_one_line(problem: RuntimeError) -> None:
    def work(call: int) -> None:
        raise problem

    with pytest.raises(TrainingError, match=r"^large: out of memory; lower --batch-size$"):
        measure([Candidate("large", work)], "large", 1, Clock.of(CPU))


def test_other_errors_are_passed_on() -> None:
    def work(call: int) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        measure([Candidate("broken", work)], "broken", 1, Clock.of(CPU))


def test_a_report_names_machine_and_versions() -> None:
    fake = FakeClock()
    rows = measure([fake.candidate("a", [1, 2])], "a", 1, fake.clock())
    document = Report(rows, "fake", {"side": 8}, 3, CPU, ["pillow"], {"kornia": "not installed"}).document()
    assert document["rows"] == [rows[0].document()]
    assert document["hardware"]["threads"] == 3
    assert document["hardware"]["cpu"]
    assert document["hardware"]["memory_gib"] > 0
    assert {"python", "torch", "timm", "mapolicy", "pillow"} <= set(document["versions"])
    assert document["left_out"] == {"kornia": "not installed"}
    assert "gpu" not in document["hardware"]
