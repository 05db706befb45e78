"""How a hostile file must be rejected: with an InputError of one printable line, within bounds of time and memory."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mapolicy.errors import InputError


def rejected(read: Callable[[Path], Any], path: Path, memory: int | None) -> str:
    """The line with which `read` rejects a file, using at most `memory` bytes; None allows any amount."""
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as problem:
            read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 20, "each takes a fraction of a second; what grows with the file takes minutes"
    if memory is not None:
        assert peak <= memory
    line = str(problem.value)
    check_line(line)
    return line


def check_line(line: str) -> None:
    """An error's text is one line of printable ASCII that fits into the command line's form."""
    assert line.isascii()
    assert line.isprintable()
    assert len(f"mapolicy: error: {line}") <= 240
