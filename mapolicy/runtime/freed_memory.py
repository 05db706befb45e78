"""What glibc's malloc does with freed memory: keep it for the next iteration, or give it back to the system.

Every iteration allocates and frees the same large tensors. By default malloc returns much of that to the system and
fetches it anew, as pages that the kernel clears first: up to a seventh of a bilevel step's time on a CPU.

Settings of malloc apply to all threads of the process. Other allocators and other systems are left alone.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

# Parameters of mallopt (glibc's malloc.h), and the values to which glibc itself adapts in programs with large blocks.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
ADAPTED: Mapping[int, int] = {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26, MMAP_MAX: 2**16}  # bytes, bytes, blocks
LARGEST = 2**31 - 1  # that mallopt takes
LARGE_BLOCK = 2**23  # bytes

_current = dict(ADAPTED)  # mallopt sets values, and tells none


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside the block what is freed stays with the process, up to 2 GiB at a time; afterwards it is given back."""
    try:
        with _settings({MMAP_MAX: 0, TRIM_THRESHOLD: LARGEST}):
            yield
    finally:
        if (trim := _function("malloc_trim")) is not None:
            trim(0)


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Inside the block each freed block of `LARGE_BLOCK` bytes or more goes back to the system at once.

    Otherwise malloc keeps the holes; blocks of other sizes do not fit into them, and the process grows beyond what it
    uses. The price is time for fresh pages.
    """
    with _settings({**ADAPTED, MMAP_THRESHOLD: LARGE_BLOCK}):
        yield


@contextmanager
def _settings(changed: Mapping[int, int]) -> Iterator[None]:
    mallopt = _function("mallopt")
    if mallopt is None:
        yield
        return
    before = dict(_current)

    def apply(values: Mapping[int, int]) -> None:
        _current.update(values)
        for parameter, value in _current.items():
            mallopt(parameter, value)

    apply(changed)
    try:
        yield
    finally:
        apply(before)


def _function(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
