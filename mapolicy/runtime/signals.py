"""How a run is asked to stop: by a signal, which waits for the end of the iteration, where the state is whole."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# SIGUSR1 is what schedulers send some time before they stop a job, SIGHUP what a terminal sends when it goes.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
INTERRUPT_EXIT, TERMINATE_EXIT = 130, 143
# Launchers and parents pass on to one process what its whole group has been sent: seconds.
ECHO = 0.5


class StopRequest:
    """The signals that came since it was made.

    Attributes:
        number: the first signal, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._patient = False
        self._heard = 0.0

    @property
    def exit_code(self) -> int:
        """What the process exits with: 130 after SIGINT, 143 after the others."""
        return exit_code_for(self.number or signal.SIGINT)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it a signal ends the run as an exception; outside the main thread Python hears none."""
        with signal_handlers(self._hear):
            yield

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it the first signal is only noted, for `obey`. A second one does not wait."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within it, inside `waiting`, no signal waits, nor one that came before."""
        self._patient = False
        try:
            self.raise_if_stopped()
            yield
        finally:
            self._patient = True

    def raise_if_stopped(self) -> None:
        """End the run if a signal came.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after another signal, with the exit code.
        """
        if self.number is not None:
            raise stop_exception(self.number)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._heard = number, time.monotonic()
            if self._patient:
                return
        elif number != signal.SIGINT and time.monotonic() - self._heard < ECHO:
            return
        self.raise_if_stopped()


@contextmanager
def signal_handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within it the handler gets the signals that stop a run, if this is the main thread.

    What was ignored stays ignored, as `nohup` means it; but for SIGINT, which shells ignore for background jobs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [n for n in STOP_SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def exit_code_for(number: int) -> int:
    """What a process exits with that a signal has stopped."""
    return INTERRUPT_EXIT if number == signal.SIGINT else TERMINATE_EXIT


def stop_exception(number: int) -> BaseException:
    """The exception that ends a run which a signal has stopped."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(exit_code_for(number))
