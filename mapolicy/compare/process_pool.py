"""A process pool for long jobs: a process that dies fails only its own item, and an interrupt lets every job save.

Only the parent receives Ctrl-C. It sends SIGTERM to its workers, on which a run saves its state, and waits for them.
Workers whose parent has died stop in the same way.
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
from typing import TYPE_CHECKING, Any

from ..errors import MapolicyError
from ..runtime.plugins import import_plugins, loaded_plugins, plugin_fault
from ..runtime.signals import signal_handlers, stop_exception

if TYPE_CHECKING:
    import torch

POLL = 1.0  # seconds
ENVIRONMENT_EXIT = 5

# Called with an item and with a function for messages to the user.
Work = Callable[[Any, Callable[[str], None]], None]


@dataclass(frozen=True)
class Failure:
    """Why an item failed, with the fields of a `MapolicyError`; `exit_code` 1 is a bug."""

    exit_code: int
    what: str
    why: str
    remedy: str = ""

    @classmethod
    def of(cls, problem: Exception) -> "Failure":
        """The failure that an exception describes."""
        problem = plugin_fault(problem) or problem
        if isinstance(problem, MapolicyError):
            return cls(problem.exit_code, problem.what, problem.why, problem.remedy)
        last = traceback.extract_tb(problem.__traceback__)[-1]
        return cls(1, type(problem).__name__, f"{problem} (line {last.lineno} of {last.filename})", "a bug of mapolicy")


def run_in_processes(
    work: Work,
    items: Sequence[Any],
    processes: int,
    finished: Callable[[int, Failure | None], None],
    on_note: Callable[[str], None],
    environments: Sequence[Mapping[str, str]] = ({},),
) -> None:
    """Call `work` on every item, several at a time in processes of their own; none of them outlives this call.

    Args:
        work: called in another process with one item at a time; must be picklable.
        items: started in this order; must be picklable.
        processes: largest number of processes at a time.
        finished: called in this process with an item's position and None, or its failure.
        on_note: called in this process with each message of the work.
        environments: environment variables of the processes, in turn.

    Raises:
        KeyboardInterrupt, SystemExit: a signal arrived, and the running jobs were stopped. A second signal kills them.
    """
    waiting = deque(range(len(items)))
    workers: list[_Worker] = []
    with _stopping(workers) as stopped:
        try:
            for number in range(min(processes, len(items))):
                workers.append(_Worker(work, environments[number % len(environments)]))
            while not stopped and (waiting or any(worker.position is not None for worker in workers)):
                for worker in workers:
                    if worker.position is None and waiting:
                        position = waiting.popleft()
                        worker.give(position, items[position])
                wait([worker.connection for worker in workers], POLL)
                for worker in tuple(workers):
                    for answer in worker.answers():
                        if isinstance(answer, str):
                            on_note(answer)
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


def gpu_environments(device: "torch.device") -> list[dict[str, str]]:
    """Environments that give each process one of the visible GPUs; a single empty one if `device` is not CUDA."""
    import torch

    if device.type != "cuda":
        return [{}]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return [{"CUDA_VISIBLE_DEVICES": name} for name in visible.split(",")]


class _Worker:
    """One process and the parent's end of the pipe to it."""

    def __init__(self, work: Work, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.environment = environment
        self.position: int | None = None
        self.dead = self._terminated = False
        self.connection, child_end = context.Pipe()
        method = multiprocessing.get_start_method(allow_none=True)
        self.process = context.Process(target=_serve, args=(child_end, work, method, loaded_plugins()))
        with _interrupts_blocked(), _with_environment(environment):
            self.process.start()
        child_end.close()

    def give(self, position: int, item: Any) -> None:
        """Send an item. If the process has died, `answers` finds out."""
        self.position = position
        with contextlib.suppress(OSError):
            self.connection.send(item)

    def answers(self) -> Iterator[str | Failure | None]:
        """Its messages so far: a text for the user, None for a finished item, or a failure."""
        alive = self.process.is_alive()  # asked first, so that the last messages of a dead process are still read
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            alive = False
        if not alive:
            self.end()
            self.dead = True
            yield self._death()

    def _death(self) -> Failure:
        code = self._exit_code or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        remedy = "check the machine's memory and log, then go on with --resume"
        return Failure(ENVIRONMENT_EXIT, "its process", how, remedy)

    def stop(self) -> None:
        """Send SIGTERM, once: a second one would end the run before it has saved."""
        if not self._terminated:
            self._terminated = True
            self.process.terminate()

    def stop_if_busy(self) -> None:
        """Stop a process that has an item; an idle one ends when the pipe is closed."""
        if self.position is not None:
            self.stop()

    def end(self) -> None:
        """Close the pipe and wait for the process."""
        self.connection.close()
        self.process.join()
        self._exit_code = self.process.exitcode


@contextlib.contextmanager
def _stopping(workers: Sequence[_Worker]) -> Iterator[list[int]]:
    """Within it a signal stops the workers; its number is appended to the list."""
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
    """Within it SIGINT is blocked. Processes started here never receive it; a terminal would send it to all of them."""
    resource_tracker.ensure_running()  # if it started later, it would unblock the signal
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


def _serve(connection: Connection, work: Work, start_method: str | None, plugins: Sequence[str]) -> None:
    """The worker's loop: receive an item, work, answer, until the pipe is closed."""
    import_plugins(plugins)
    # The parent's method. The default here is "spawn", under which every data loader worker would import torch again.
    multiprocessing.set_start_method(start_method, force=True)
    threading.Thread(target=_stop_with_parent, daemon=True).start()

    def say(answer: str | Failure | None) -> None:
        with contextlib.suppress(OSError):  # the parent is gone: a run that is saving its state must still finish
            connection.send(answer)

    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            work(item, say)
        except Exception as problem:  # sent to the parent
            say(Failure.of(problem))
        else:
            say(None)


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
