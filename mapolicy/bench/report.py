"""What a benchmark says beside its rows: the clock, the machine, the versions, what could not take part."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from ..runtime.machine import hardware, versions
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
        left_out: candidates that could not take part, and why.
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
