"""A run's folder: configuration, log, the two newest checkpoints, status, result. Whole after any kill."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import RunConfig
from ..errors import InputError, UsageError
from ..runtime.files import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    DATA_FILE,
    METRICS_FILE,
    PREVIOUS_CHECKPOINT_FILE,
    RESULT_FILE,
    RUN_FILES,
    STATUS_FILE,
    TABLE_FILE,
    append_line,
    foreign_to_run,
    has_files,
    remove_litter,
    sync,
    write_atomically,
)
from ..runtime.sanitize import printable
from .checkpoint import load_checkpoint, save_checkpoint


class RunFolder:
    """The files of one run. Whoever writes holds the folder's lock.

    Args:
        path: the folder, or None: then nothing is written and nothing is found.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lines = 0

    def check(self, resume: bool, overwrite: bool) -> None:
        """Refuse to mix two runs; nothing is changed.

        A folder without a checkpoint may be resumed: its run was stopped before the first one, and starts again.

        Raises:
            UsageError: it holds a run, and neither resume nor overwrite was asked for; or it has no checkpoint and
                holds files that are no run's, so it is somebody's folder.
        """
        if self.path is None:
            return
        if odd := foreign_to_run(self.path):
            raise UsageError(str(self.path), f"holds {printable(odd)}, which is no run's", "use another --run-dir")
        if not (resume or overwrite) and has_files(self.path):
            raise UsageError(str(self.path), "holds a run", "use --resume, --force or another --run-dir")

    def begin(self, config: RunConfig) -> None:
        """Start anew: what an earlier run left is removed."""
        if self.path is None:
            return
        for name in RUN_FILES:
            (self.path / name).unlink(missing_ok=True)
        self._prepare(config, [])

    def go_on(self, config: RunConfig, lines: int) -> list[dict[str, Any]]:
        """Cut the log back to its first lines, those of the state that was loaded.

        Returns:
            The records that stay.
        """
        if self.path is None:
            return []
        path = self.path / METRICS_FILE
        kept = path.read_text(encoding="utf-8").splitlines()[:lines] if path.exists() else []
        self._prepare(config, kept)
        return [json.loads(line) for line in kept]

    def _prepare(self, config: RunConfig, lines: list[str]) -> None:
        assert self.path is not None
        remove_litter(self.path)
        write_atomically(self.path / METRICS_FILE, "".join(f"{line}\n" for line in lines).encode())
        write_atomically(self.path / CONFIG_FILE, config.to_toml().encode())
        self._lines = len(lines)

    def log(self, record: Mapping[str, float]) -> None:
        """One more line.

        Raises:
            EnvironmentFault: it cannot be written.
        """
        if self.path is not None:
            append_line(self.path / METRICS_FILE, json.dumps(record))
            self._lines += 1

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """A checkpoint, and with it how long the log is; the one before stays beside it.

        Raises:
            EnvironmentFault: it cannot be written; what was there stands.
        """
        if self.path is None:
            return
        sync(self.path / METRICS_FILE)
        previous = self.path / PREVIOUS_CHECKPOINT_FILE
        save_checkpoint(self.path / CHECKPOINT_FILE, tensors, {**facts, "lines": self._lines}, previous)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        """The newest whole checkpoint: tensors, facts, and what the user should know about it; damaged ones go.

        Raises:
            InputError: none is whole.
        """
        assert self.path is not None
        damaged: list[InputError] = []
        for path in (self.path / CHECKPOINT_FILE, self.path / PREVIOUS_CHECKPOINT_FILE):
            if not path.exists():
                continue
            try:
                tensors, facts = load_checkpoint(path)
            except InputError as problem:
                damaged.append(problem)
                continue
            if any(Path(bad.what).is_dir() for bad in damaged):
                raise damaged[0]
            for bad in damaged:  # the next save would put it in this one's place
                Path(bad.what).unlink()
            told = "".join(f"{bad.what}: {bad.why}; falls back to {path.name}" for bad in damaged)
            return tensors, facts, told
        raise damaged[0] if damaged else InputError(str(self.path), "has no checkpoint", "use --force")

    def write_table(self) -> None:
        """The log as comma-separated values, for spreadsheets: a column for each name, empty where a line has none."""
        if self.path is None:
            return
        lines = (self.path / METRICS_FILE).read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines[: self._lines]]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(dict.fromkeys(name for record in records for name in record)))
        writer.writeheader()
        writer.writerows(records)
        write_atomically(self.path / TABLE_FILE, table.getvalue().encode())

    def checkpoint(self) -> Path | None:
        """The newest checkpoint's file, if there is one."""
        if self.path is None:
            return None
        files = (self.path / name for name in (CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE))
        return next((path for path in files if path.exists()), None)

    def write_status(self, status: Mapping[str, Any]) -> None:
        """What becomes of the run, for whoever watches it from outside."""
        if self.path is not None:
            write_atomically(self.path / STATUS_FILE, (json.dumps(status) + "\n").encode())

    def write_data(self, facts: Mapping[str, Any]) -> None:
        """What the run's data set is, and what of it is not used."""
        if self.path is not None:
            write_atomically(self.path / DATA_FILE, (json.dumps(facts, indent=1) + "\n").encode())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """The run's figures."""
        if self.path is not None:
            write_atomically(self.path / RESULT_FILE, (json.dumps(result, indent=2) + "\n").encode())
