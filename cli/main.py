"""The `mapolicy` command: its subcommands, and how an error becomes one line and an exit code."""

import io
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from inspect import signature
from typing import Annotated, Any, NoReturn

import typer

from ..config import SearchConfig, TrainConfig
from ..errors import MapolicyError, UsageError
from ..runtime import rank_environment
from ..runtime.faults import shown_fault
from ..runtime.signals import INTERRUPT_EXIT, TERMINATE_EXIT
from . import (
    bench,
    compare,
    data,
    demo,
    doctor,
    evaluate,
    explain,
    explore,
    export,
    export_network,
    help,
    import_policy,
    inspect,
    listing,
    predict,
    preview,
    pull,
    push,
    report,
    search,
    settings,
    slim,
    train,
)

# Newer versions of typer contain click, older ones depend on it. BadParameter has the same bases in both.
ClickException: type[Exception] = typer.BadParameter.__mro__[2]

LONGEST_ERROR, SHORTEST_PATH, SHORTEST_REASON = 240, 60, 40
LONGEST_ADVISED = 480  # of a line whose advice is long: a command is of no use when it is cut
BUG_EXIT = 1
RESUMABLE = "interrupted: the run stopped; --resume goes on from its last checkpoint, if one was written"
INTERRUPTED = "interrupted: the command stopped; give it again"

app = typer.Typer(
    name="mapolicy",
    pretty_exceptions_enable=False,
    cls=help.HelpGroup,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"mapolicy {version('mapolicy')}")
        raise typer.Exit


# Every command by name, in the panel of `mapolicy --help` that shows it. A command is added here and nowhere else.
COMMANDS: Mapping[str, Mapping[str, Callable[..., None] | typer.Typer]] = {
    "Start": {
        "demo": demo.demo,
        "data": data.data,
        "search": search.search,
        "train": train.train,
        "compare": compare.compare,
    },
    "Policies": {
        "preview": preview.preview,
        "inspect": inspect.inspect,
        "explain": explain.explain,
        "explore": explore.explore,
        "slim": slim.slim,
    },
    "Results": {
        "predict": predict.predict,
        "evaluate": evaluate.evaluate,
        "export-network": export_network.export_network,
        "report": report.report,
    },
    "Share": {
        "push": push.push,
        "pull": pull.pull,
        "import": import_policy.import_policy,
        "export": export.export,
    },
    "Lists": {
        "archs": listing.archs,
        "datasets": listing.datasets,
        "policies": listing.policies,
        "operations": listing.operations,
        "recipes": listing.recipes,
        "settings": settings.settings,
    },
    "Machine": {
        "doctor": doctor.doctor,
        "bench": bench.app,
    },
}
for _panel, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, name=_name, rich_help_panel=_panel)
        else:
            app.command(_name, cls=help.HelpCommand, rich_help_panel=_panel)(_command)


@app.callback()
def _before_any_command(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Learn from your images which augmentations harm a classifier, keep it in one file, train any network with it.

    Two lines to begin with: mapolicy demo, and mapolicy search folder:PHOTOS.
    """


def main() -> NoReturn:
    """Run the command line; exit with the code of what happened."""
    debug = "--debug" in sys.argv
    real = sys.__stderr__
    if real is not None and sys.stderr is real:
        sys.stderr = io.TextIOWrapper(_Forgiving(real.fileno(), "w", closefd=False), real.encoding, write_through=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that the encoding does not have
            stream.reconfigure(errors="backslashreplace")
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False, prog_name="mapolicy")
        if sys.stdout is not None:  # None if it was closed before the start
            sys.stdout.flush()
        if code == INTERRUPT_EXIT:  # typer caught the interrupt
            raise KeyboardInterrupt
    except ClickException as problem:
        code = _fail(f"command line: {_click_message(problem)}", 2, debug)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail(_interrupted(), INTERRUPT_EXIT, debug)
    except (BrokenPipeError, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code == TERMINATE_EXIT:
            sys.exit(_fail(_interrupted(), TERMINATE_EXIT, debug))
        if not isinstance(stop, BrokenPipeError) and not isinstance(stop.__context__, BrokenPipeError):
            raise
        # The reader closed the pipe, which is no error. Python must not complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as problem:  # a bug of a plugin or of mapolicy gets one line and an exit code, too
        text = f"{type(problem).__name__}: {problem}; this is a bug of mapolicy, --debug shows where"
        fault = shown_fault(problem)
        code = _fail(text, BUG_EXIT, debug) if fault is None else fail(fault, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupted() -> str:
    """What to do after a signal: only a command with --resume goes on."""
    commands = {name: command for panel in COMMANDS.values() for name, command in panel.items()}
    command = commands.get(next((word for word in sys.argv[1:] if not word.startswith("-")), ""))
    resumes = command is not None and callable(command) and "resume" in signature(command).parameters
    return RESUMABLE if resumes and "--dry-run" not in sys.argv else INTERRUPTED


class _Forgiving(io.FileIO):
    """A stream that ignores write errors: a long run goes on after its terminal is closed."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)


def fail(problem: MapolicyError, debug: bool) -> int:
    """Print the error as one line, with its traceback where `debug` is true; returns the exit code."""
    line = _line(problem.what, problem.why, problem.remedy)
    return _fail(line, problem.exit_code, debug, LONGEST_ADVISED)


def _line(what: str, why: str, remedy: str) -> str:
    """The error's line; of a long path only the end is shown and of a long reason only the start, never less advice."""
    what, why, advice = (_ascii(text) for text in (what, why, f"; {remedy}" if remedy else ""))
    room = LONGEST_ERROR - len(f"mapolicy: error: : {advice}")
    longest = max(room - len(why), SHORTEST_PATH)
    what = what if len(what) <= longest else f"...{what[3 - longest :]}"
    longest = max(room - len(what), SHORTEST_REASON)
    why = why if len(why) <= longest else f"{why[: longest - 3]}..."
    return f"{what}: {why}{advice}"


def _ascii(text: str) -> str:
    return " ".join(text.split()).encode("ascii", "backslashreplace").decode()


def _fail(text: str, code: int, debug: bool, longest: int = LONGEST_ERROR) -> int:
    if debug:
        traceback.print_exc()
    if rank_environment.rank() > 0 and (code == UsageError.exit_code or text in (RESUMABLE, INTERRUPTED)):
        return code  # rank 0 has the same error and shows it
    clean = "".join(character if character.isprintable() else "?" for character in _ascii(f"mapolicy: error: {text}"))
    if len(clean) > longest:
        clean = f"{clean[: longest - 3]}..."
    print(clean, file=sys.stderr)
    return code


def _click_message(problem: Exception) -> str:
    """What was wrong with the command's words, and where to read on: an option may be a setting of `--set`."""
    text = str(getattr(problem, "format_message", problem.__str__)()).rstrip(".")
    unknown = str(getattr(problem, "option_name", "")).lstrip("-").replace("-", "_")
    if "No such option" in text and unknown in {*SearchConfig.settings(), *TrainConfig.settings()}:
        option = unknown.replace("_", "-")
        return f"No such option: --{option}; use --set {unknown}=VALUE (`mapolicy settings {unknown}` explains it)"
    return f"{text}; see mapolicy --help"
