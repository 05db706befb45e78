"""Stopping a run by a signal: at the end of the iteration, where its state is consistent."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Schedulers send SIGUSR1 some time before they stop a job; a terminal sends SIGHUP when it closes.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
INTERRUPT_EXIT, TERMINATE_EXIT = 130, 143
# Seconds within which a second signal is the same request: a launcher forwards what the whole group has received.
ECHO = 0.5


class StopRequest:
    """Whether a signal has asked the run to stop, and when the run obeys.

    Attributes:
        number: the first signal received, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred = False
        self._received = 0.0

    @property
    def exit_code(self) -> int:
        """The process's exit code: 130 after SIGINT, 143 after any other signal."""
        return exit_code_for(self.number or signal.SIGINT)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block a signal raises an exception; outside the main thread Python receives no signals."""
        with signal_handlers(self._receive):
            yield

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block the first signal only sets `number`, for `raise_if_stopped`; a second one raises at once."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside the block, which is inside `deferred`, signals raise at once, and so does one received before."""
        self._deferred = False
        try:
            self.raise_if_stopped()
            yield
        finally:
            self._deferred = True

    def raise_if_stopped(self) -> None:
        """Raise the exception that ends the run if a signal was received.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after another signal, with the exit code.
        """
        if self.number is not None:
            raise stop_exception(self.number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._received = number, time.monotonic()
            if self._deferred:
                return
        elif number != signal.SIGINT and time.monotonic() - self._received < ECHO:
            return
        self.raise_if_stopped()


@contextmanager
def signal_handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside the block the handler receives `STOP_SIGNALS`, if this is the main thread.

    A signal that the process ignores stays ignored, as `nohup` intends. SIGINT is the exception: shells make background
    jobs ignore it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [n for n in STOP_SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def exit_code_for(number: int) -> int:
    """The exit code of a process that this signal has stopped."""
    return INTERRUPT_EXIT if number == signal.SIGINT else TERMINATE_EXIT


def stop_exception(number: int) -> BaseException:
    """The exception that ends a run after this signal."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(exit_code_for(number))
