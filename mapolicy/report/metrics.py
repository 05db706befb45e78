"""Settings, result and learning curves of a run, read from its folder. No torch."""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.choices import MACHINE_FIELDS
from ..errors import InputError
from ..runtime.files import CONFIG_FILE, METRICS_FILE, RESULT_FILE, read_regular_file

LARGEST_LOG, LARGEST_RECORD = 2**28, 2**24  # bytes
POINTS = 300  # of a curve on the page; neighbours of a longer one are averaged

_PLAIN = (str, int, float, bool)

Curve = list[tuple[float, float]]  # epoch, value


@dataclass(frozen=True)
class RunLog:
    """A run, finished or not. Holds no folders and no machine settings, since a report may be shared.

    Attributes:
        folder: name of the run folder.
        settings: portable settings of `config.toml`.
        result: plain values of `result.json`; empty until the run is finished.
        curves: (epoch, value) points of each logged metric; values that are not finite are left out.
    """

    folder: str
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    curves: Mapping[str, Curve]

    @property
    def digests(self) -> frozenset[str]:
        """Digests of the bundles that the run wrote or used; empty until the run is finished."""
        found = (self.result.get(name) for name in ("digest", "refined_digest"))
        return frozenset(digest for digest in found if isinstance(digest, str))

    @property
    def on_test_images(self) -> str:
        """How good the run's network is on the test images, in words; empty if that is not known."""
        names = {"test_top1": "top-1", "test_balanced_accuracy": "balanced accuracy", "test_calibration_error": "ECE"}
        values = [self.result.get(name) for name in names]
        if not all(type(value) in (int, float) for value in values):
            return ""
        return ", ".join(f"{value:.2f} % {name}" for value, name in zip(values, names.values(), strict=True))


def read_run(folder: Path) -> RunLog:
    """Read the run folder of a `search` or a `train`.

    Raises:
        InputError: the folder is not a run folder, or its files are damaged.
    """
    try:
        settings = tomllib.loads(read_regular_file(folder / CONFIG_FILE, LARGEST_RECORD).decode())
        lines = read_regular_file(folder / METRICS_FILE, LARGEST_LOG).decode().splitlines()
        # The last line may be incomplete: the run is writing it, or was killed.
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
        raise InputError(str(folder), "has a log that mapolicy did not write", "name a run folder") from None
    settings = {name: value for name, value in settings.items() if name not in MACHINE_FIELDS}
    if str(settings.get("dataset")).startswith("folder:"):
        settings["dataset"] = f"folder:{Path(str(settings['dataset']).removeprefix('folder:')).name}"
    result = {name: value for name, value in result.items() if isinstance(value, _PLAIN) and name != "bundle"}
    return RunLog(folder.absolute().name, settings, result, {name: thinned(curve) for name, curve in curves.items()})


def thinned(curve: Curve, points: int = POINTS) -> Curve:
    """The curve with at most `points` points, each the mean of equally many neighbours."""
    size = math.ceil(len(curve) / points)
    groups = [curve[start : start + size] for start in range(0, len(curve), max(size, 1))]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
