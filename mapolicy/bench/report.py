"""The result of a benchmark: its rows with clock, machine and versions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from ..runtime.machine import hardware, versions
from .interleaved import Row


@dataclass(frozen=True)
class Report:
    """The result of a benchmark.

    Attributes:
        rows: one for each candidate.
        time: which seconds were measured, `Clock.meaning`.
        settings: settings of the benchmark.
        threads: threads of torch.
        device: device of torch.
        packages: further distributions whose versions are reported.
        left_out: candidates that could not run, and the reasons.
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
