"""What a run folder tells of its run: settings, result, and the figures that it logged. No torch."""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import MACHINE_FIELDS
from ..errors import InputError
from ..runtime.files import CONFIG_FILE, METRICS_FILE, RESULT_FILE, read_regular_file

LARGEST_LOG, LARGEST_RECORD = 2**28, 2**24  # bytes
POINTS = 300  # of a curve; more cannot be told apart, so the mean of some is shown

_PLAIN = (str, int, float, bool)

Curve = list[tuple[float, float]]  # epoch, value


@dataclass(frozen=True)
class RunLog:
    """A run, finished or not.

    Attributes:
        folder: its name.
        settings: of `config.toml`, without folders and what else belongs to the machine: others may read this.
        result: of `result.json`, likewise; empty before the run is done.
        curves: of each logged figure, in the order of the log; values that are not finite are left out.
    """

    folder: str
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    curves: Mapping[str, Curve]

    @property
    def digests(self) -> frozenset[str]:
        """Of the bundles that it has made or used; empty before the run is done."""
        found = (self.result.get(name) for name in ("digest", "refined_digest"))
        return frozenset(digest for digest in found if isinstance(digest, str))


def read_run(folder: Path) -> RunLog:
    """The log of a run folder of `search` or `train`.

    Raises:
        InputError: no run folder, or one whose files no run has written.
    """
    try:
        settings = tomllib.loads(read_regular_file(folder / CONFIG_FILE, LARGEST_RECORD).decode())
        lines = read_regular_file(folder / METRICS_FILE, LARGEST_LOG).decode().splitlines()
        # The last line of a run that is writing, or was killed, may be a part of one.
        records = [json.loads(line) for line in lines if line.endswith("}")]
        has_result = (folder / RESULT_FILE).exists()
        result = json.loads(read_regular_file(folder / RESULT_FILE, LARGEST_RECORD)) if has_result else {}
        curves: dict[str, Curve] = {}
        for record in records:
            epoch = float(record["epoch"])
            for name, value in record.items():
                if isinstance(value, int | float) and math.isfinite(value) and math.isfinite(epoch):
                    curves.setdefault(str(name), []).append((epoch, float(value)))
        if not isinstance(result, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise InputError(str(folder), "has a log that no run has written", "name a run folder of mapolicy") from None
    settings = {name: value for name, value in settings.items() if name not in MACHINE_FIELDS}
    if str(settings.get("dataset")).startswith("folder:"):
        settings["dataset"] = f"folder:{Path(str(settings['dataset']).removeprefix('folder:')).name}"
    result = {name: value for name, value in result.items() if isinstance(value, _PLAIN) and name != "bundle"}
    return RunLog(folder.absolute().name, settings, result, {name: thinned(curve) for name, curve in curves.items()})


def thinned(curve: Curve, points: int = POINTS) -> Curve:
    """At most so many points, each the mean of as many neighbours."""
    size = math.ceil(len(curve) / points)
    parts = [curve[start : start + size] for start in range(0, len(curve), max(size, 1))]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
