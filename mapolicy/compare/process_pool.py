"""Work side by side: processes that take one piece after another; one that dies takes only its piece along.

The parent alone hears Ctrl-C, stops the others by SIGTERM, which a run answers by saving its state, and waits for them.
A process whose parent has died stops in the same way.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from ..errors import MapolicyError
from ..runtime.signals import signal_handlers, stop_exception

POLL = 1.0  # seconds
ENVIRONMENT_EXIT = 5

# Does a piece; what it has to say on the way goes to the second argument.
Work = Callable[[Any, Callable[[str], None]], None]


@dataclass(frozen=True)
class Failure:
    """Why a piece was not done, as the one line of a `MapolicyError`; `exit_code` 1 is a bug."""

    exit_code: int
    what: str
    why: str
    remedy: str = ""

    @classmethod
    def of(cls, problem: Exception) -> "Failure":
        """The same for an exception."""
        if isinstance(problem, MapolicyError):
            return cls(problem.exit_code, problem.what, problem.why, problem.remedy)
        last = traceback.extract_tb(problem.__traceback__)[-1]
        return cls(1, type(problem).__name__, f"{problem} (line {last.lineno} of {last.filename})", "a bug of mapolicy")


def side_by_side(
    work: Work,
    pieces: Sequence[Any],
    processes: int,
    finished: Callable[[int, Failure | None], None],
    noted: Callable[[str], None],
    environments: Sequence[Mapping[str, str]] = ({},),
) -> None:
    """Do every piece of work; when it returns or raises, none of its processes is left.

    Args:
        work: called in another process with one piece at a time; can be sent there, as the pieces can.
        pieces: taken in this order.
        processes: at most so many at once.
        finished: called here with a piece's position when it is done, or with why it is not.
        noted: called here with what the work says.
        environments: variables of the processes, in turn.

    Raises:
        KeyboardInterrupt, SystemExit: a signal came; what was running has been stopped. A second one kills it.
    """
    waiting = deque(range(len(pieces)))
    workers: list[_Worker] = []
    with _stopping(workers) as stopped:
        try:
            for number in range(min(processes, len(pieces))):
                workers.append(_Worker(work, environments[number % len(environments)]))
            while not stopped and (waiting or any(worker.position is not None for worker in workers)):
                for worker in workers:
                    if worker.position is None and waiting:
                        position = waiting.popleft()
                        worker.give(position, pieces[position])
                wait([worker.connection for worker in workers], POLL)
                for worker in tuple(workers):
                    for answer in worker.answers():
                        if isinstance(answer, str):
                            noted(answer)
                        elif worker.position is not None and not stopped:
                            position, worker.position = worker.position, None
                            finished(position, answer)
                    if worker.dead:
                        workers.remove(worker)
                        if waiting and not stopped:
                            workers.append(_Worker(work, worker.environment))
        finally:
            for worker in workers:
                worker.stop_if_busy()
            for worker in workers:
                worker.end()
    if stopped:
        raise stop_exception(stopped[0])


class _Worker:
    """A process, and our end of the line to it."""

    def __init__(self, work: Work, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.environment = environment
        self.position: int | None = None
        self.dead = self._told = False
        self.connection, theirs = context.Pipe()
        method = multiprocessing.get_start_method(allow_none=True)
        self.process = context.Process(target=_serve, args=(theirs, work, method))
        with _interrupts_blocked(), _with_environment(environment):
            self.process.start()
        theirs.close()

    def give(self, position: int, piece: Any) -> None:
        """Send a piece; that nobody is there any more is found out by `answers`."""
        self.position = position
        with contextlib.suppress(OSError):
            self.connection.send(piece)

    def answers(self) -> Iterator[str | Failure | None]:
        """What it has said: a text on the way, None for a piece that is done, or why one is not."""
        alive = self.process.is_alive()  # asked first: what a process said before it died is read all the same
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            alive = False
        if not alive:
            self.end()
            self.dead = True
            yield self._obituary()

    def _obituary(self) -> Failure:
        code = self._exit_code or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        remedy = "check the machine's memory and log, then go on with --resume"
        return Failure(ENVIRONMENT_EXIT, "its process", how, remedy)

    def stop(self) -> None:
        """SIGTERM, once: a second one would not let it save."""
        if not self._told:
            self._told = True
            self.process.terminate()

    def stop_if_busy(self) -> None:
        """An idle one ends by itself when the line is closed."""
        if self.position is not None:
            self.stop()

    def end(self) -> None:
        """Wait for it, and let go of it."""
        self.connection.close()
        self.process.join()
        self._exit_code = self.process.exitcode


@contextlib.contextmanager
def _stopping(workers: Sequence[_Worker]) -> Iterator[list[int]]:
    """A signal stops the workers, and its number is in the list."""
    stopped: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            if stopped:
                worker.process.kill()
            else:
                worker.stop()
        stopped.append(number)

    with signal_handlers(note):
        yield stopped


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that starts within it never hears of SIGINT, which a terminal sends to all; ours comes afterwards."""
    resource_tracker.ensure_running()  # where it has to start, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _with_environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, work: Work, start_method: str | None) -> None:
    """The other process: pieces in, answers out, until the line is closed."""
    # As in the parent: here it is "spawn", with which each loader's worker would import torch anew.
    multiprocessing.set_start_method(start_method, force=True)
    threading.Thread(target=_stop_with_parent, daemon=True).start()

    def say(answer: str | Failure | None) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: a run that saves its state does so all the same
            connection.send(answer)

    while True:
        try:
            piece = connection.recv()
        except EOFError:
            return
        try:
            work(piece, say)
        except Exception as problem:  # told to the parent, which raises it there
            say(Failure.of(problem))
        else:
            say(None)


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
