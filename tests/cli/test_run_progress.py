"""What is shown while a run goes on."""

import io
import re

import pytest
from mapolicy.cli import run_progress
from rich.cells import cell_len
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


def plain(screen: str) -> str:
    """Without what moves the cursor and colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)


def drive(reporter: run_progress.QuietReporter) -> None:
    reporter.on_start("search wrn10_1", 10, {"device": "[bold]cpu"}, 3600.0)
    reporter.on_step(5, 3725.0)
    reporter.on_log(RECORD)
    reporter.on_policy([("Rotate", "ShearX", 0.0059), ("Color", "Invert[/bold]", 0.0058)])
    reporter.on_policy([("Color", "Invert[/bold]", 0.0061), ("Rotate", "ShearX", 0.0058)])
    reporter.on_evaluate({"iteration": 10, "epoch": 1, "validation_top1": 87.5})
    reporter.on_note("a [note]")
    reporter.on_finish()
    reporter.on_complete({"digest": "d"})


def test_weights_that_are_equal_but_for_rounding_have_no_spread() -> None:
    assert "weight_spread" in run_progress.shown(RECORD)
    assert "weight_spread" not in run_progress.shown({**RECORD, "weight_spread": 3e-8})


def test_the_display_suits_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JPY_PARENT_PID", "MPLBACKEND", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    assert type(run_progress.reporter(quiet=True)) is run_progress.QuietReporter
    assert type(run_progress.reporter()) is run_progress.PlainReporter
    monkeypatch.setenv("FORCE_COLOR", "1")  # as an IPython kernel sets it, and for a terminal
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm-color")
    assert type(run_progress.reporter()) is run_progress.LiveReporter
    for name, value in (("JPY_PARENT_PID", "12"), ("MPLBACKEND", "module://matplotlib_inline.backend_inline")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert type(run_progress.reporter()) is run_progress.PlainReporter


def test_a_comparison_tells_of_each_run_on_a_terminal_too() -> None:
    screen = io.StringIO()
    reporter = run_progress.LiveReporter(Console(file=screen, force_terminal=True, width=120, color_system=None))
    reporter.on_compare(3, 20, "wrn10_1, none, seed 0: 81.0 %", 125)
    assert "3 of 20: wrn10_1, none, seed 0: 81.0 %; 2:05 left" in plain(screen.getvalue())


def test_plain_lines_tell_an_epoch_in_one_line(capsys: pytest.CaptureFixture) -> None:
    reporter = run_progress.PlainReporter()
    drive(reporter)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 6
    assert lines[:2] == ["mapolicy: search wrn10_1: 10 iterations", "mapolicy:   device: [bold]cpu"]
    assert all(line.startswith("mapolicy: ") for line in lines)
    for part in ("loss 1.250", "meta-validation top-1 87.50 %", "alpha 0.1000", "images a second 1234", "1:02:05 left"):
        assert part in lines[4]
    assert lines[2] == "mapolicy: pairs of operations drawn most often: Rotate + ShearX; Color + Invert[/bold]"
    assert reporter.result == {"digest": "d"}


def test_a_run_that_was_not_measured_tells_its_time_after_some_iterations(capsys: pytest.CaptureFixture) -> None:
    reporter = run_progress.PlainReporter()
    reporter.on_start("train wrn10_1", 8, {}, None)
    for iteration in range(1, 9):
        reporter.on_step(iteration, 60.0 * (8 - iteration))
    assert capsys.readouterr().err.splitlines()[1:] == ["mapolicy:   time: about 5:00 left, by the first iterations"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_live_display_shows_every_figure_and_no_markup(width: int) -> None:
    screen = io.StringIO()
    drive(run_progress.LiveReporter(Console(file=screen, force_terminal=True, width=width, color_system=None)))
    text = screen.getvalue()
    for part in ("1.250", "87.50 %", "0.99000", "1234", "5/10", "[bold]cpu", "a [note]", "1:02:05 left"):
        assert part in text, part
    assert "Color + Invert[/bold]  0.610 %  \u2191" in text
    assert "Rotate + ShearX        0.580 %  \u2193" in text
    assert max(map(cell_len, plain(text).splitlines())) <= width


def test_time_left_is_there_before_the_first_iteration() -> None:
    screen = io.StringIO()
    reporter = run_progress.LiveReporter(Console(file=screen, force_terminal=True, width=80))
    reporter.on_start("search", 10, {}, 3600.0)
    reporter.on_finish()
    assert "1:00:00 left" in screen.getvalue()


def test_a_terminal_without_unicode_and_one_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    raw = io.BytesIO()
    screen = io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True)
    drive(run_progress.LiveReporter(Console(file=screen, force_terminal=True, width=80)))
    text = raw.getvalue().decode()
    assert "0.610 %  up" in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", text), "no colour"


def test_a_resized_terminal_is_drawn_at_its_new_width() -> None:
    reporter = run_progress.LiveReporter(Console(file=io.StringIO(), force_terminal=True, width=120))
    drive(reporter)
    for number in range(60):
        reporter.on_log(RECORD | {"loss": 60.0 - number})
    for width in (120, 60, 30):
        screen = io.StringIO()
        Console(file=screen, force_terminal=True, width=width).print(reporter)
        text = plain(screen.getvalue())
        assert max(map(cell_len, text.splitlines())) <= width
        assert ("\u2588" in text) == (width > 36)
        assert "5/10" in text
        assert "1:02:05 left" in text


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 5, ""),
        ([1.0], 5, ""),
        ([0.0, 1.0], 5, "\u2581\u2588"),
        ([0.0, 0.0, 7.0, 7.0, 1.0, 1.0], 3, "\u2581\u2588\u2582"),
        ([2.0, 2.0], 5, "\u2581\u2581"),
        ([1.0, float("nan")], 5, "\u2581\u2581"),
    ],
)
def test_sparkline(values: list[float], width: int, expected: str) -> None:
    assert run_progress.sparkline(values, width) == expected


def test_quiet_shows_notes_alone(capsys: pytest.CaptureFixture) -> None:
    drive(run_progress.QuietReporter())
    assert capsys.readouterr() == ("", "mapolicy: a [note]\n")


def test_what_is_no_terminal_gets_lines() -> None:
    assert type(run_progress.reporter(quiet=False)) is run_progress.PlainReporter
    assert type(run_progress.reporter(quiet=True)) is run_progress.QuietReporter
