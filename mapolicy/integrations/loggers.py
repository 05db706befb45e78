"""A run's figures where a team looks at them: TensorBoard, Weights & Biases.

Each is a `Reporter`, needs a package of its own, and hears what the display hears. The run folder's own log is written
whether they are there or not.
"""

import hashlib
import importlib
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from ..errors import UsageError
from ..policy.level_sampler import LevelSampler
from ..policy.sampler import Sampler
from ..report.figures import as_png, heat_figure
from ..report.tables import HeatTable, level_table, probability_table
from ..training.callbacks import Record, Reporter
from ..training.policy_view import PolicyView
from ..transforms.space import OperationSpace

PROJECT = "mapolicy"
PICTURES = 10  # of each kind in a run, about
TILES, TILES_IN_A_ROW, TILE = 32, 8, 64  # augmented images in a picture; their smallest side, pixels


class TensorBoardLogger(Reporter):
    """Scalars and pictures under `tensorboard` in the run folder; a resumed run takes back what lay beyond.

    After the first epoch, the last, and some ten between them: augmented images, a histogram of the weights where a
    policy weighs, and a heat map of what is drawn where that is being learned.

    Raises:
        UsageError: from `opened`, where there is no run folder.
    """

    def __init__(self) -> None:
        self._board = _package("tensorboard", "torch.utils.tensorboard")

    def on_open(self, settings: Mapping[str, Any], folder: Path | None, iteration: int) -> None:
        """Begin a file of events."""
        if folder is None:
            raise UsageError("logger tensorboard", "there is no run folder to write to", "name one")
        purge, self._epochs = iteration + 1 if iteration else None, int(settings["epochs"])
        self._writer = self._board.SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        self._writer.add_text("settings", "\n".join(f"    {key} = {value!r}" for key, value in settings.items()))

    def on_log(self, record: Record) -> None:
        """Its figures."""
        self._scalars("training", record)

    def on_evaluate(self, record: Record) -> None:
        """Its figures."""
        self._epoch = round(record["epoch"])
        self._scalars("epoch", record)

    def on_view(self, view: PolicyView) -> None:
        """Its pictures, where they are due."""
        if self._epoch not in (1, self._epochs) and self._epoch % math.ceil(self._epochs / PICTURES):
            return
        self._writer.add_image("policy/augmented", picture_of(view.images()), view.iteration)
        if (weights := view.weights()) is not None:
            self._writer.add_histogram("policy/weights", weights, view.iteration)
        if view.sampler is not None:
            draws = draws_of(view.sampler, view.space)
            with Image.open(io.BytesIO(as_png(heat_figure(draws)))) as map_:
                pixels = np.asarray(map_.convert("RGB"))
            self._writer.add_image(f"policy/{draws.key}", pixels, view.iteration, dataformats="HWC")

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


def picture_of(images: Tensor) -> Tensor:
    """The first images of a batch, uint8 [n, C, H, W], side by side: uint8 [3, H, W]. Tiny images are enlarged."""
    times = math.ceil(TILE / images.shape[-1])
    tiles = images[:TILES].cpu().repeat_interleave(times, -1).repeat_interleave(times, -2)
    picture: Tensor = make_grid(tiles, TILES_IN_A_ROW, pad_value=255)
    return picture


def draws_of(sampler: Sampler, space: OperationSpace) -> HeatTable:
    """How often a sampler draws each operation and level now, or each pair of operations where levels are uniform."""
    if isinstance(sampler, LevelSampler):
        return level_table(sampler.log_levels[None].numpy(), sampler.strength, space)
    return probability_table(sampler.probabilities, sampler.means, space.names)


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
        raise UsageError(f"logger {name}", "its package is not installed", f"pip install 'mapolicy[{name}]'") from None


LOGGERS: Mapping[str, Callable[[], Reporter]] = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}


def make_logger(name: str) -> Reporter:
    """A logger by name.

    Raises:
        UsageError: no such logger, or its package is not installed.
    """
    if name not in LOGGERS:
        raise UsageError("logger", f"{name!r} is not one of {', '.join(LOGGERS)}")
    return LOGGERS[name]()
