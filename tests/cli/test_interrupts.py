"""Signals, lost terminals and second runs, with the command as a process of its own.

The comparison is started as a user starts it; the searches are forked, to spare them their imports.
"""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapolicy.training.checkpoint import load_checkpoint
from tests.helpers.forked import Command
from tests.helpers.settings import FEW


@contextlib.contextmanager
def searching(folder: Path, terminal: str | None = None) -> Iterator[Command]:
    """A search that takes its time, in its second epoch."""
    few = (f"--set={name}={value}" for name, value in FEW.items())
    command = ("search", "digits", "--proxy", "wrn10_1", "--epochs", "400", *few)
    with Command(*command, folder=folder, terminal=terminal) as process:
        log = folder / "runs" / "search-digits-wrn10_1-seed0" / "metrics.jsonl"
        end = time.monotonic() + 240
        while not (log.exists() and "validation_top1" in log.read_text()):
            assert not process.ended, process.wait()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_ends_the_iteration_saves_and_can_be_resumed(tmp_path: Path, number: int, code: int) -> None:
    with searching(tmp_path) as process:
        begun = time.monotonic()
        process.send_signal(number)
        done = process.wait(timeout=60)
    assert time.monotonic() - begun < 60
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("--resume") == 1
    (run,) = (tmp_path / "runs").iterdir()
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", code)
    _, facts = load_checkpoint(run / "checkpoint.safetensors")
    assert facts["iteration"] == status["step"] >= 5


def test_a_second_run_in_the_folder_exits_6_and_names_the_first(mapolicy, tmp_path: Path, monkeypatch) -> None:
    with searching(tmp_path) as process:
        monkeypatch.chdir(tmp_path)
        before = sorted(path.name for path in tmp_path.rglob("*"))
        for more in ((), ("--resume",), ("--force",)):
            result = mapolicy("search", "digits", "--proxy", "wrn10_1", *more)
            result.is_error(6, "runs/search-digits-wrn10_1-seed0", f"process {process.pid} on")
        assert [name for name in sorted(path.name for path in tmp_path.rglob("*")) if ".tmp" not in name] == before


def test_a_terminal_that_goes_away_stops_a_run_as_a_signal_does(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with searching(tmp_path, os.ttyname(theirs)) as process:
        os.close(theirs)
        os.close(ours)  # reading and writing are errors from now on
        time.sleep(0.5)
        assert not process.ended, "it goes on without anybody to read it"
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60).returncode == 143
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert load_checkpoint(run / "checkpoint.safetensors")[1]["iteration"] > 0


def alive_in_group(group: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, its_group, *_ = path.read_text().rpartition(")")[2].split()
            found += [str(path)] if int(its_group) == group and state != "Z" else []
    return found


@contextlib.contextmanager
def comparing(folder: Path, bundle: Path) -> Iterator[subprocess.Popen[str]]:
    """A comparison that takes its time, in its first two trainings."""
    script = Path(sys.executable).with_name("mapolicy")
    command = [script, "compare", "--bundle", bundle, "--arch", "wrn10_1", "--against", "none", "--jobs", "2"]
    command += ["--epochs", "4000", "--run-dir", "run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, cwd=folder, start_new_session=True) as process:
        try:
            end = time.monotonic() + 240
            while len([path for path in (folder / "run").rglob("metrics.jsonl") if path.stat().st_size]) < 2:
                assert time.monotonic() < end
                assert process.poll() is None
                time.sleep(0.1)
            yield process
        finally:
            process.kill()  # its workers end with it


def test_ctrl_c_stops_a_comparison_side_by_side(bundle_file: Path, tmp_path: Path) -> None:
    with comparing(tmp_path, bundle_file) as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group
        out, errors = process.communicate(timeout=240)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in errors, errors
    assert "--resume goes on from its last checkpoint" in errors.splitlines()[-1]
    for policy in ("learned", "none"):
        (run,) = (tmp_path / "run" / "wrn10_1" / policy).iterdir()
        assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
        assert load_checkpoint(run / "checkpoint.safetensors")[1]["iteration"] > 0
    end = time.monotonic() + 60
    while alive_in_group(process.pid):  # multiprocessing's own tracker hears a moment later
        assert time.monotonic() < end
        time.sleep(0.1)
