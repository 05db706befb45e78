"""Peak memory of a function, measured in a process of its own."""

import gc
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from ..errors import TrainingError

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of_process(function: Callable[..., int | None], *arguments: Any) -> int | None:
    """Call a function in a new process and return its result. The function and its arguments must be picklable.

    Raises:
        TrainingError: the process died, usually because it ran out of memory.
    """
    # Spawned, not forked: a fork starts with the parent's memory and with locks that the parent's threads held.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool:
        why = "its process died, perhaps because memory ran out"
        raise TrainingError("measuring memory", why, "lower --batch-size, or use --no-memory") from None


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Largest memory in use during the work, in bytes above the memory in use before it.

    On a GPU this is the memory of torch's allocator. On a CPU it is the resident memory of the process, which includes
    all libraries; it is read from Linux's /proc, and None on other systems.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # 5 resets the high-water mark to the memory in use now; getrusage's mark cannot be reset.
        RESET.write_text("5", encoding="ascii")
    except OSError:
        return None
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
