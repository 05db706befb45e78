"""Which device a run uses, and how its results are made reproducible."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.utils import deterministic

from ..errors import UsageError
from .freed_memory import freed_memory_kept


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
    adaptive pooling, torch runs the kernel that it has. On the CPU freed memory is kept for the next iteration.

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
        kept = nullcontext() if cuda else freed_memory_kept()
        with kept, torch.random.fork_rng(devices=devices), warnings.catch_warnings():
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
