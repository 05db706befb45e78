"""Which device a run uses, how its results are made reproducible, and how freed memory is returned."""

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic

from ..errors import UsageError


def resolve_device(name: str) -> torch.device:
    """The torch device for `auto`, `cpu` or `cuda`; `auto` is CUDA where torch finds a device, else the CPU.

    Raises:
        UsageError: `cuda` was asked for and torch finds none, or the name is unknown.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UsageError("--device", f"{name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda", "torch finds no CUDA device", "use --device cpu")
    return torch.device(name)


@contextmanager
def reproducible(threads: int, device: torch.device) -> Iterator[int]:
    """Inside the block torch is deterministic; afterwards its settings and generators are as before.

    Sets deterministic kernels and the number of threads, and forks torch's generators. On the CPU results repeat bit
    for bit. On CUDA they repeat where torch has deterministic kernels; where it has none, as for the gradient of
    adaptive pooling, torch runs the kernel that it has.

    Args:
        threads: CPU threads; 0 keeps torch's choice. The order of float32 sums depends on it.
        device: the run's device.

    Yields:
        The number of threads in use.
    """
    # cuBLAS reads this when it creates its handle; without it matrix products on CUDA are not deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads_before = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled()
    warn_only_before = torch.is_deterministic_algorithms_warn_only_enabled()
    fill_before = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    cuda = device.type == "cuda"
    devices = [torch.cuda.current_device()] if cuda else []  # other devices belong to other processes
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            if cuda:
                warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
            torch.use_deterministic_algorithms(True, warn_only=cuda)
            # Filling costs 5 % of a step, and nothing here reads memory that it has not written.
            deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            if threads:
                torch.set_num_threads(threads)
            yield torch.get_num_threads()
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(before, warn_only=warn_only_before)
        deterministic.fill_uninitialized_memory = fill_before  # type: ignore[attr-defined]


# Parameters of mallopt (glibc's malloc.h), and the values to which glibc itself adapts in programs with large blocks.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
ADAPTED = {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}  # bytes
LARGE_BLOCK = 2**23  # bytes


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Inside the block glibc returns each freed block of `LARGE_BLOCK` bytes or more to the system at once.

    Otherwise malloc keeps the holes; blocks of other sizes do not fit into them, and the process grows beyond what it
    uses. The price is time for fresh pages. It applies to all threads of the process. Other allocators are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, LARGE_BLOCK)
    try:
        yield
    finally:
        for parameter, value in ADAPTED.items():
            mallopt(parameter, value)
