"""How much memory a piece of work needs at its peak, measured in a process of its own."""

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
    """What `function` returns, called in a fresh process: a module's function and arguments that can be sent there.

    Raises:
        TrainingError: the process died, for want of memory as a rule.
    """
    # Spawned, not forked: a fork starts with its parent's memory, and with locks that its parent's threads held.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool:
        why = "its process died, perhaps for want of memory"
        raise TrainingError("measuring memory", why, "lower --batch-size, or use --no-memory") from None


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that the work takes above what is in use when it begins.

    On a GPU what torch's allocator handed out; on a CPU the process's resident pages, the only figure that has
    everything in it; None where the system does not tell (it is Linux's /proc that does).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # 5 sets the high-water mark back to what is resident now; getrusage's would keep that of the imports.
        RESET.write_text("5", encoding="ascii")
    except OSError:
        return None
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
