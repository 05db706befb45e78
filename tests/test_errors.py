"""Errors: one line and one exit code each, whole after a trip between processes; the one place that prints them."""

import sys
from multiprocessing.reduction import ForkingPickler

import mapolicy.cli.main
import pytest

from mapolicy import errors
from mapolicy.errors import (
    DivergenceError,
    EnvironmentFault,
    FolderInUseError,
    InputError,
    MapolicyError,
    TrainingError,
    UsageError,
)
from mapolicy.runtime.faults import exit_code_of

# The promised table: a bug of ours, usage, bad input, training failed, environment, run folder in use.
EXIT_CODES = {
    MapolicyError: 1,
    UsageError: 2,
    InputError: 3,
    TrainingError: 4,
    DivergenceError: 4,
    EnvironmentFault: 5,
    FolderInUseError: 6,
}
LONGEST = 240
KINDS = pytest.mark.parametrize("kind", EXIT_CODES, ids=lambda kind: kind.__name__)


def test_the_table_has_every_error() -> None:
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined == set(EXIT_CODES)


@KINDS
def test_exit_code_and_line(kind: type[MapolicyError]) -> None:
    problem = kind("bundle.safetensors", "has 7 bytes, not a header", "check the file")
    assert problem.exit_code == EXIT_CODES[kind]
    assert isinstance(problem, MapolicyError)
    assert str(problem) == "bundle.safetensors: has 7 bytes, not a header; check the file"
    assert str(kind("disk", "is full")) == "disk: is full"


@KINDS
def test_survives_the_trip_from_a_worker_process(kind: type[MapolicyError]) -> None:
    sent = kind("image 7", "cannot be decoded", "use --skip-corrupt")
    got = ForkingPickler.loads(ForkingPickler.dumps(sent))
    assert type(got) is kind
    assert (got.what, got.why, got.remedy) == ("image 7", "cannot be decoded", "use --skip-corrupt")
    assert str(got) == str(sent)
    assert got.exit_code == EXIT_CODES[kind]


def command_line(monkeypatch: pytest.MonkeyPatch, problem: BaseException, *flags: str) -> int:
    def app(**_: object) -> None:
        raise problem

    monkeypatch.setattr(mapolicy.cli.main, "app", app)
    monkeypatch.setattr(sys, "argv", ["mapolicy", *flags])
    with pytest.raises(SystemExit) as exit_:
        mapolicy.cli.main.main()
    return exit_.value.code


@KINDS
def test_command_line_says_one_line_and_exits_with_the_code(
    kind: type[MapolicyError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(monkeypatch, kind("x", "is wrong", "mend it")) == EXIT_CODES[kind]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "mapolicy: error: x: is wrong; mend it\n"


@pytest.mark.parametrize(
    ("why", "shown"),
    [
        ("two\nlines\tand more", "x: two lines and more"),
        ("\x1b[31mred\x07", r"x: ?[31mred?"),
        ("caf\u00e9 \u202e", r"x: caf\xe9 \u202e"),
        ("[/bold] [red]", "x: [/bold] [red]"),
    ],
)
def test_command_line_cleans_what_it_prints(
    why: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line(monkeypatch, InputError("x", why))
    assert capsys.readouterr().err == f"mapolicy: error: {shown}\n"


def test_command_line_cuts_a_long_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command_line(monkeypatch, InputError("x", "long " * 1000))
    line = capsys.readouterr().err.removesuffix("\n")
    assert len(line) == LONGEST
    assert line.endswith("...")


@pytest.mark.parametrize("part", ["x", "caf\u00e9", "a b"])
def test_a_long_path_leaves_room_for_the_reason(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = part * 2000 + "/end"
    for problem in (InputError(path, "is wrong", "mend it"), OSError(36, "is wrong", path)):
        command_line(monkeypatch, problem)
        line = capsys.readouterr().err.removesuffix("\n")
        assert len(line) == LONGEST
        assert line.startswith("mapolicy: error: ...")
        assert "/end: is wrong; " in line
    command_line(monkeypatch, InputError(path, "long " * 100, "mend it"))
    assert "/end: long long" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("problem", "code"), [(KeyboardInterrupt(), 130), (ZeroDivisionError("oh"), 1), (MemoryError(), 5)]
)
def test_what_is_no_error_of_ours(
    problem: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(monkeypatch, problem) == code
    printed = capsys.readouterr().err
    assert printed.startswith("mapolicy: error: ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (OSError("Failed to get source"), "OSError: Failed to get source; --debug shows where"),
        (OSError(28, "No space left on device"), "output: No space left on device"),
        (OSError(28, "No space left", "/x"), "/x: No space left; check the disk and the path"),
    ],
)
def test_advice_about_the_disk_is_for_files(
    problem: OSError, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(monkeypatch, problem) == exit_code_of(problem) == 5
    assert capsys.readouterr().err == f"mapolicy: error: {line}\n"


def test_traceback_with_debug_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command_line(monkeypatch, InputError("x", "is wrong"))
    assert "Traceback" not in capsys.readouterr().err
    command_line(monkeypatch, InputError("x", "is wrong"), "--debug")
    assert "Traceback" in capsys.readouterr().err
