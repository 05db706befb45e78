"""Peak memory, measured in a process of its own."""

import os
from functools import partial

import pytest
import torch

from mapolicy.bench import memory
from mapolicy.errors import TrainingError

CPU = torch.device("cpu")


def test_peak_memory_sees_what_was_freed() -> None:
    if not memory.RESET.exists():
        pytest.skip("the system does not tell")
    pages = 64 * 2**20
    work = partial(torch.ones, pages, dtype=torch.uint8)
    found = memory.peak_of_process(memory.peak_bytes, work, CPU)
    assert found is not None
    assert 0.9 * pages < found < 3 * pages
    small = memory.peak_bytes(lambda: None, CPU)
    assert small is not None
    assert small < pages / 4, "the mark is set back"


def test_a_process_that_dies_is_one_line() -> None:
    with pytest.raises(TrainingError, match="measuring memory: its process died"):
        memory.peak_of_process(os._exit, 9)


def test_no_proc_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "RESET", tmp_path / "nowhere" / "clear_refs")
    assert memory.peak_bytes(lambda: None, CPU) is None
