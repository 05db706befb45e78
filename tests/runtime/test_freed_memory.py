"""What the system sees of freed memory: resident pages, and pages that are fetched anew."""

import ctypes
import subprocess
import sys

import pytest
import torch

from mapolicy.runtime.device import reproducible

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another allocator than glibc's")

START = """
import pathlib, re, resource
from contextlib import nullcontext
import torch
from mapolicy.runtime.device import reproducible
from mapolicy.runtime.freed_memory import freed_memory_kept, freed_memory_returned

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

torch.ones(24 * 2**20, dtype=torch.uint8)  # glibc has seen a large block come and go
"""
HOLE = """
with {context}:
    large = torch.ones(20 * 2**20, dtype=torch.uint8)
    above = torch.ones(2**16, dtype=torch.uint8)
    before = resident()
    del large
print(before - resident())
"""
ITERATIONS = """
def iteration():
    tensors = [torch.ones(40 * 2**20, dtype=torch.uint8) for _ in range(4)]

with {context}:
    for _ in range(5):
        iteration()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        iteration()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20)
print(resident())
"""


def printed(code: str, context: str) -> list[float]:
    """What a fresh process prints."""
    command = [sys.executable, "-c", START + code.format(context=context)]
    return [float(line) for line in subprocess.run(command, capture_output=True, check=True).stdout.split()]


def test_freed_memory_goes_back_to_the_system() -> None:
    """20 MiB below a block that stays: glibc keeps them, in MiB of resident memory."""
    assert printed(HOLE, "freed_memory_returned()")[0] > 19
    assert printed(HOLE, "nullcontext()")[0] < 1
    assert printed(HOLE, "freed_memory_kept(), freed_memory_returned()")[0] > 19


def test_freed_memory_stays_for_the_next_iteration() -> None:
    """160 MiB in blocks that glibc maps one by one: MiB of pages that ten iterations fetch anew."""
    anew, left = printed(ITERATIONS, "nullcontext()")
    assert anew > 1  # pages may be large ones, each of which counts once
    again, resident = printed(ITERATIONS, "freed_memory_kept()")
    assert again < anew / 5
    assert resident < left + 20, "afterwards it is given back"
    assert printed(ITERATIONS, "reproducible(1, torch.device('cpu'))")[0] < anew / 5, "so do the runs"


def test_settings_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `mallopt` is left with after each block, by parameter."""
    from mapolicy.runtime import freed_memory

    state: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        state[parameter] = value
        return 1

    monkeypatch.setattr(freed_memory, "_function", lambda name: mallopt if name == "mallopt" else lambda pad: 1)
    with reproducible(1, torch.device("cpu")):
        kept = dict(state)
        with freed_memory.freed_memory_returned():
            assert state == {-1: 2**26, -3: 2**23, -4: 2**16}
        assert state == kept == {-1: 2**31 - 1, -3: 2**25, -4: 0}
    assert state == {-1: 2**26, -3: 2**25, -4: 2**16}
