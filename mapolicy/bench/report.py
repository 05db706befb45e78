"""What a benchmark says beside its rows: the clock, the machine, the versions, what could not take part."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..runtime import versions
from .interleaved import Row


@dataclass(frozen=True)
class Report:
    """A benchmark's outcome.

    Attributes:
        rows: the figures.
        time: which seconds they are.
        settings: what was measured.
        threads: of torch, in force.
        device: that torch worked on.
        packages: distributions that took part besides the library's own.
        left_out: contenders that could not take part, and why.
    """

    rows: Sequence[Row]
    time: str
    settings: Mapping[str, Any]
    threads: int
    device: torch.device
    packages: Iterable[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "rows": [row.document() for row in self.rows],
            "time": self.time,
            "settings": dict(self.settings),
            "hardware": hardware(self.device) | {"threads": self.threads},
            "versions": versions() | {name: version(name) for name in self.packages},
            "left_out": dict(self.left_out),
        }


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine, in the words that it has for itself; memory in GiB."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "system": platform.system(),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return facts


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
