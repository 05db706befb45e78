"""What a run stands on: counter-based randomness, device, threads, machine, versions.

Every random draw of the project comes from a generator seeded by (seed, stage, stream, step). There is no hidden state
to save: a run goes on from its step number alone, and a new stream never moves the others.
"""

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
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: `cuda` was asked for and there is none, or the name is unknown.
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
    """Within it torch repeats itself: deterministic kernels, a fixed number of threads, noise of its own.

    On the CPU bit for bit. On CUDA as far as torch has deterministic kernels; where it has none (the gradient of
    adaptive pooling, say) it uses what there is.

    Args:
        threads: CPU threads; 0 keeps torch's own choice. The order of float32 sums depends on it.
        device: that the run uses.

    Yields:
        The number of threads in force.
    """
    # cuBLAS reads this when its handle is made; without it matrix products on CUDA are not deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads_before = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled()
    warn_only_before = torch.is_deterministic_algorithms_warn_only_enabled()
    fill_before = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    cuda = device.type == "cuda"
    devices = [torch.cuda.current_device()] if cuda else []  # another's memory is another process's
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            if cuda:
                warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
            torch.use_deterministic_algorithms(True, warn_only=cuda)
            # Filling costs 5 % of a step, and nothing reads what was not written.
            deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            if threads:
                torch.set_num_threads(threads)
            yield torch.get_num_threads()
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(before, warn_only=warn_only_before)
        deterministic.fill_uninitialized_memory = fill_before  # type: ignore[attr-defined]


# mallopt's numbers for what to set (glibc's malloc.h), and what glibc itself comes to for programs with large blocks.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
GLIBCS_OWN = {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}
LARGE = 2**23  # bytes


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Within it a large block that is freed goes back to the system at once.

    glibc's malloc keeps it otherwise, where blocks of other sizes do not fit into the hole, so that a process grows
    beyond what it uses. Fresh pages cost time. For the whole process, all of its threads. Nothing happens with other
    allocators.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        for what, number in GLIBCS_OWN.items():
            mallopt(what, number)
