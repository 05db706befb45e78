"""The process pool: results, messages, failures, dead processes and interrupts."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mapolicy.compare.process_pool import Failure, run_in_processes
from mapolicy.errors import TrainingError

PATIENCE = 60  # seconds; no test depends on how long it takes


def play(item: tuple[str, Path], on_note: Callable[[str], None]) -> None:
    """The work; the item names which kind."""
    part, path = item
    if part == "diverge":
        raise TrainingError("iteration 3", "the loss is nan", "lower it")
    if part == "break":
        raise ZeroDivisionError("oh")
    if part == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if part == "meet":  # only two at once get past it
        path.with_name(f"{path.name}.here").write_text("")
        while len(list(path.parent.glob("*.here"))) < 2:
            time.sleep(0.01)
    if part == "wait":
        received: list[int] = []  # a run saves on the first signal and gives up on a second one
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: received.append(number))
        path.with_name(f"{path.name}.pid").write_text(str(os.getpid()))
        while not received:
            time.sleep(0.01)
        time.sleep(0.3)
        path.write_text("saved" if received == [signal.SIGTERM] else f"received {received}")
        sys.exit(143)
    if part == "report":
        path.write_text(multiprocessing.get_start_method())
        return
    on_note(f"{part} by {os.environ.get('PART', 'nobody')}")
    path.write_text(str(os.getpid()))


def run(items: list[tuple[str, Path]], processes: int, **options) -> tuple[dict[int, Failure | None], list[str]]:
    done: dict[int, Failure | None] = {}
    notes: list[str] = []
    run_in_processes(play, items, processes, done.__setitem__, notes.append, **options)
    assert multiprocessing.active_children() == []
    return done, notes


def test_every_item_is_done_once_two_at_a_time(tmp_path: Path) -> None:
    items = [("meet", tmp_path / "0"), ("meet", tmp_path / "1"), *(("do", tmp_path / str(n)) for n in range(2, 6))]
    done, notes = run(items, 2, environments=[{"PART": "one"}, {"PART": "two"}])
    assert done == dict.fromkeys(range(6))
    assert sorted(note for note in notes if "meet" in note) == ["meet by one", "meet by two"]
    assert len(notes) == 6
    used = {(tmp_path / str(n)).read_text() for n in range(6)}
    assert len(used) == 2
    assert str(os.getpid()) not in used
    assert "PART" not in os.environ


def test_failures_are_reported_and_the_other_items_done(tmp_path: Path) -> None:
    items = [(part, tmp_path / part) for part in ("diverge", "break", "die", "do")]
    done, _ = run(items, 1)
    assert done[0] == Failure(4, "iteration 3", "the loss is nan", "lower it")
    assert (done[1].exit_code, done[1].what) == (1, "ZeroDivisionError")
    assert "oh (line " in done[1].why
    assert "test_process_pool.py" in done[1].why
    assert done[2].exit_code == 5
    assert done[2].why == "was killed by SIGKILL"
    assert done[3] is None
    assert (tmp_path / "do").exists()


def test_processes_start_others_as_the_parent_does(tmp_path: Path) -> None:
    run([("report", tmp_path / "method")], 1)
    assert (tmp_path / "method").read_text() == multiprocessing.get_start_method()


def test_more_processes_than_items(tmp_path: Path) -> None:
    assert run([("do", tmp_path / "0")], 3)[0] == {0: None}
    assert run([], 3)[0] == {}


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.compare.test_process_pool import play
from mapolicy.compare.process_pool import run_in_processes

if __name__ == "__main__":
    items = [("wait", Path({folder!r}) / str(n)) for n in range(4)]
    try:
        run_in_processes(play, items, 2, lambda *_: print("finished"), print)
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)
"""


def waiting_script(folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A process whose two workers are at work, in a process group of its own; and the workers' ids."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[2]), folder=str(folder)))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, script], **pipes, text=True, start_new_session=True)
    paths = [folder / f"{n}.pid" for n in range(2)]
    until(lambda: all(path.exists() and path.read_text() for path in paths))
    return process, [int(path.read_text()) for path in paths]


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_stops_all_and_each_may_save(tmp_path: Path, number: int, code: int) -> None:
    """As a terminal's Ctrl-C, which reaches every process of the group."""
    process, workers = waiting_script(tmp_path)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (code, "")
    assert out == ("interrupted\n" if number == signal.SIGINT else "")
    assert all(gone(worker) for worker in workers)
    assert [(tmp_path / str(n)).exists() for n in range(4)] == [True, True, False, False]
    assert (tmp_path / "0").read_text() == "saved"


def test_processes_do_not_outlive_their_parent(tmp_path: Path) -> None:
    process, workers = waiting_script(tmp_path)
    process.kill()
    process.communicate(timeout=PATIENCE)
    until(lambda: all(gone(worker) for worker in workers))
    assert (tmp_path / "0").read_text() == "saved"
