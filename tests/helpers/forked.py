"""Commands in processes of their own that have no imports to pay: a server that has loaded torch forks them.

Arguments, environment, signals, streams and exit codes are a real process's; the modules of the command line and the
plugins are imported in it. What tests the imports themselves starts a process by `subprocess`.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# Also for other work in processes; they have none of pytest's threads.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("mapolicy.search", "mapolicy.train", "mapolicy.compare.comparison", "mapolicy.transforms.cpu_kernels"),
        *("mapolicy.report.page", "sklearn.datasets", "sklearn.metrics", "scipy.stats", "typer", "rich.table"),
    ]
)


class Command:
    """`mapolicy ...`, typed in a folder, while it runs.

    Args:
        folder: where it is typed.
        environment: what is added to this process's.
        terminal: the path of a terminal for its streams; else they are kept.
    """

    def __init__(
        self, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None, terminal: str | None = None
    ) -> None:
        self.arguments = ("mapolicy", *arguments)
        self._streams = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._streams.name, name) for name in ("out", "err"))
        streams = [terminal] * 3 if terminal else [os.devnull, str(self._out), str(self._err)]
        environment = {**os.environ, **(environment or {})}
        self._process = FORKS.Process(target=_typed, args=(self.arguments, str(folder), environment, streams))
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.exitcode is not None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Its exit code and what it has written."""
        self._process.join(timeout)
        assert self.ended, f"{self.arguments} has not ended"
        out, err = (path.read_text("utf-8") if path.exists() else "" for path in (self._out, self._err))
        return subprocess.CompletedProcess(self.arguments, self._process.exitcode or 0, out, err)

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        """End it if it has not ended."""
        self._process.kill()
        self._process.join()
        self._streams.cleanup()


def run_command(
    *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Type it and wait for it."""
    with Command(*arguments, folder=folder, environment=environment) as command:
        return command.wait()


def _typed(arguments: tuple[str, ...], folder: str, environment: dict[str, str], streams: list[str]) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [*arguments]
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    for number, path in enumerate(streams):
        stream = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOCTTY, 0o600)
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
    try:
        from mapolicy.cli.entry import main

        main()
    finally:
        atexit._run_exitfuncs()
