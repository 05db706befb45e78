"""The finished trainings of a search's check, and what the clock has left out: kept in a file for a resumed search."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..distributed import communicator
from ..errors import InputError
from ..runtime.files import read_regular_file, write_atomically
from .callbacks import Reporter
from .pace import Extent

LARGEST_RECORD = 2**24  # bytes


@dataclass
class CheckRecord:
    """What a check has done.

    Attributes:
        path: its file; None keeps nothing.
        identity: what the trainings belong to.
        planned: the whole check.
        extent: what of it is done.
        right: for each finished training 1 or 0 by held-out image.
    """

    path: Path | None
    identity: str
    planned: Extent
    extent: Extent
    right: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path | None, identity: str, planned: Extent) -> "CheckRecord":
        """Rank 0's file in every process; an empty record where it is missing, damaged or of another check."""
        found = json.loads(communicator().broadcast(json.dumps(_read(path, identity)).encode()))
        return cls(path, identity, planned, Extent.from_json(found.get("extent")) or planned, found["right"])

    @property
    def is_new(self) -> bool:
        """Whether nothing has been done or left out."""
        return not self.right and self.extent == self.planned

    def add(self, key: str, right: list[int]) -> None:
        """One more training has ended."""
        self.right[key] = right
        self._write()

    def cut(self, extent: Extent, reporter: Reporter) -> None:
        """Do only this much of the check from now on."""
        if extent == self.extent:
            return
        self.extent = extent
        self._write()
        reporter.on_note(f"warning: {extent.told(self.planned.epochs)}")

    def _write(self) -> None:
        if self.path is None:
            return
        content = {"identity": self.identity, "right": self.right}
        cut = {} if self.extent == self.planned else {"extent": asdict(self.extent)}
        write_atomically(self.path, json.dumps(content | cut, sort_keys=True).encode())


def _read(path: Path | None, identity: str) -> dict[str, object]:
    if path is not None and path.is_file():
        try:
            found = json.loads(read_regular_file(path, LARGEST_RECORD))
            if found["identity"] == identity:
                return {"right": dict(found["right"]), "extent": found.get("extent")}
        except (InputError, ValueError, KeyError, TypeError, AttributeError):
            pass
    return {"right": {}}
