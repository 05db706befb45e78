"""When a command began: its process's start, as Python and its modules take seconds to load on a busy machine."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_START = 60.0  # seconds; a process that is older has been something else before
START_TIME = 19  # of the fields after the name in /proc/self/stat, in ticks since the machine's start

_began: float | None = None


@contextmanager
def of_process() -> Iterator[None]:
    """Count the time of the command in this block from the start of the process."""
    global _began
    _began = time.monotonic() - process_age()
    try:
        yield
    finally:
        _began = None


def began() -> float:
    """`time.monotonic()` when the command began; now, where that is not known."""
    return time.monotonic() if _began is None else _began


def process_age() -> float:
    """Seconds since this process started; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[START_TIME]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return 0.0
    return age if 0 <= age <= LONGEST_START else 0.0
