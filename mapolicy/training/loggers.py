"""A run's figures where a team looks at them: TensorBoard, Weights & Biases.

Each is a `Reporter`, needs a package of its own, and hears what the display hears. The run folder's own log is written
whether they are there or not.
"""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .callbacks import Record, Reporter

PROJECT = "mapolicy"


class TensorBoardLogger(Reporter):
    """Scalars under `tensorboard` in the run folder, by iteration; a resumed run takes back what lay beyond.

    Raises:
        UsageError: from `opened`, where there is no run folder.
    """

    def __init__(self) -> None:
        self._board = _package("tensorboard", "torch.utils.tensorboard")

    def on_open(self, settings: Mapping[str, Any], folder: Path | None, iteration: int) -> None:
        """Begin a file of events."""
        if folder is None:
            raise UsageError("logger tensorboard", "there is no run folder to write to", "name one")
        purge = iteration + 1 if iteration else None
        self._writer = self._board.SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        self._writer.add_text("settings", "\n".join(f"    {key} = {value!r}" for key, value in settings.items()))

    def on_log(self, record: Record) -> None:
        """Its figures."""
        self._scalars("training", record)

    def on_evaluate(self, record: Record) -> None:
        """Its figures."""
        self._scalars("epoch", record)

    def on_complete(self, result: Mapping[str, Any]) -> None:
        """Its numbers."""
        for name, value in _numbers(result).items():
            self._writer.add_scalar(f"result/{name}", value)

    def on_finish(self) -> None:
        """Write out what is left."""
        self._writer.close()

    def _scalars(self, group: str, record: Record) -> None:
        for name, value in record.items():
            if name != "iteration":
                self._writer.add_scalar(f"{group}/{name}", value, int(record["iteration"]))


class WandbLogger(Reporter):
    """A run of Weights & Biases in the project `mapolicy`; `WANDB_MODE=offline` and its other variables hold.

    A resumed run goes on in the same run of theirs: its id follows from the run folder's place.
    """

    def __init__(self) -> None:
        self._wandb = _package("wandb", "wandb")

    def on_open(self, settings: Mapping[str, Any], folder: Path | None, iteration: int) -> None:
        """Begin a run of theirs, or go on with it."""
        place = {} if folder is None else {"dir": str(folder), "id": _identity(folder), "resume": "allow"}
        name = PROJECT if folder is None else folder.name
        self._run = self._wandb.init(project=PROJECT, name=name, config=dict(settings), **place)
        self._run.define_metric("*", step_metric="iteration")

    def on_log(self, record: Record) -> None:
        """Its figures."""
        self._run.log(dict(record))

    def on_evaluate(self, record: Record) -> None:
        """Its figures."""
        self._run.log(dict(record))

    def on_complete(self, result: Mapping[str, Any]) -> None:
        """Its numbers, as their summary."""
        self._run.summary.update(_numbers(result))

    def on_finish(self) -> None:
        """End it; theirs waits for what has not been sent."""
        self._run.finish()


def _identity(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in result.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _package(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(f"logger {name}", "its package is not here", f"pip install 'mapolicy[{name}]'") from None


LOGGERS: Mapping[str, Callable[[], Reporter]] = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}


def make_logger(name: str) -> Reporter:
    """A logger by name.

    Raises:
        UsageError: no such logger, or its package is not here.
    """
    if name not in LOGGERS:
        raise UsageError("logger", f"{name!r} is not one of {', '.join(LOGGERS)}")
    return LOGGERS[name]()
