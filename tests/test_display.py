"""What is shown while a run goes on."""

import io

import pytest
from mapolicy.cli import display
from rich.console import Console

RECORD = {
    "iteration": 5,
    "epoch": 0.5,
    "loss": 1.25,
    "validation_loss": 1.5,
    "alpha": 0.1,
    "entropy": 0.99,
    "weight_spread": 0.2,
    "learning_rate": 0.05,
    "images_per_second": 1234.5,
    "seconds_left": 3725.0,
}


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (-3, "0:00")])
def test_duration(seconds: float, text: str) -> None:
    assert display.duration(seconds) == text


def drive(reporter: display.QuietReporter) -> None:
    reporter.started("search wrn10_1", 10, {"device": "[bold]cpu"})
    reporter.iterated(RECORD)
    reporter.evaluated({"iteration": 10, "epoch": 1, "validation_top1": 87.5})
    reporter.noted("a [note]")
    reporter.finished()
    reporter.completed({"digest": "d"})


def test_plain_lines_tell_an_epoch_in_one_line(capsys: pytest.CaptureFixture) -> None:
    reporter = display.PlainReporter()
    drive(reporter)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("mapolicy: ") for line in lines)
    for part in ("loss 1.250", "meta-validation top-1 87.50 %", "alpha 0.1000", "images a second 1234", "1:02:05 left"):
        assert part in lines[1]
    assert reporter.result == {"digest": "d"}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_live_display_shows_every_figure_and_no_markup(width: int) -> None:
    screen = io.StringIO()
    drive(display.LiveReporter(Console(file=screen, force_terminal=True, width=width, color_system=None)))
    text = screen.getvalue()
    for part in ("1.250", "87.50 %", "0.99000", "1234", "5/10", "[bold]cpu", "a [note]"):
        assert part in text, part


def test_quiet_shows_notes_alone(capsys: pytest.CaptureFixture) -> None:
    drive(display.QuietReporter())
    assert capsys.readouterr() == ("", "mapolicy: a [note]\n")


def test_what_is_no_terminal_gets_lines() -> None:
    assert type(display.reporter(quiet=False)) is display.PlainReporter
    assert type(display.reporter(quiet=True)) is display.QuietReporter


def test_a_cost_that_was_not_measured_says_so() -> None:
    assert display.ratio(None) == "not measured (too few iterations)"
    assert display.ratio(4.111) == "4.11x a plain step"
