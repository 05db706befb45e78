"""Where a folder data set lies: a bundle records the folder's name, and the runs in `runs` record its path."""

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig
from ..errors import InputError, MapolicyError
from ..runtime import rank_environment
from ..runtime.files import CONFIG_FILE, RESULT_FILE
from ..runtime.toml_file import read_toml
from . import display
from .outputs import slug
from .resolve import Config

if TYPE_CHECKING:
    from ..bundle.load import Opened

RUNS = Path("runs")
FOLDER = "folder:"
LARGEST_RESULT = 2**24  # bytes


def with_known_folder(config: TrainConfig, opened: "Opened | None", typed: bool) -> TrainConfig:
    """The configuration with the path of the bundle's folder, where only its name is known.

    The path comes from a run of this working folder whose result has the bundle's digest.

    Args:
        config: of the command.
        opened: the bundle; None without one.
        typed: whether the user named the data set.

    Raises:
        InputError: nobody knows the path; the message has the whole command to type.
    """
    if opened is None or typed or not config.dataset.startswith(FOLDER) or _place(config).exists():
        return config
    for run in _runs():
        result = _json(run / RESULT_FILE)
        place = _place_of_run(run)
        if result.get("digest") == opened.policy.digest and place is not None and place.exists():
            display.note(f"data set: {place}, from {run / CONFIG_FILE}")
            return config.with_changes(dataset=f"{FOLDER}{place}")
    name = config.dataset.removeprefix(FOLDER)
    command = shlex.join(["mapolicy", *sys.argv[1:2], f"{FOLDER}PATH/{name}", *sys.argv[2:]])
    why = f"the bundle has the folder's name, not its place, and it is not in {config.data_dir}"
    raise InputError(config.dataset, why, f"type {command}")


def with_fitting_batch(config: Config, recipe: str, typed: Collection[str]) -> Config:
    """The configuration with a smaller batch, where a folder has fewer training images than a recipe's batch.

    Args:
        config: of the command.
        recipe: where its settings come from, as `resolve` says.
        typed: names of the settings that the user typed; they stay.

    Raises:
        UsageError, InputError: the folder cannot be split.
    """
    if "batch_size" in typed or not recipe.startswith("recipe ") or not config.dataset.startswith(FOLDER):
        return config
    from ..data.batch_sampler import batches_per_epoch, fitting_batch
    from ..data.splits import open_dataset
    from ..data.stratify import draw_splits
    from ..distributed import communicator

    images = len(draw_splits(open_dataset(config), config, None, lambda _: {}).train)
    if batches_per_epoch(config, images):
        return config
    size = fitting_batch(images, config.accumulate * communicator().size)
    if rank_environment.rank() == 0:
        why = f"{images} training images are fewer than the {config.batch_size} of {recipe}"
        display.note(f"batch_size {size}: {why} (--batch-size)")
    return config.with_changes(batch_size=size)


def dataset_slug(dataset: str, data_dir: str) -> str:
    """A data set's name as a part of file names, different for folders of the same name in different places.

    The first folder of a name gets the name alone. Where a run in `runs` has it for another folder, the parent's name
    comes before it, and where that is taken too, a hash of the path comes after it.
    """
    plain = slug(dataset)
    if not dataset.startswith(FOLDER):
        return plain
    here = Path(os.path.abspath(_folder(dataset, data_dir)))  # noqa: PTH100 - as data sets are named
    short = hashlib.sha256(str(here).encode()).hexdigest()[:6]
    names = (plain, f"{slug(here.parent.name)}-{plain}", f"{plain}-{short}")
    return next((name for name in names[:-1] if not _taken(name, here)), names[-1])


def _taken(name: str, here: Path) -> bool:
    """Whether a run has this name for another folder."""
    for run in _runs():
        if run.name.startswith((f"search-{name}-", f"train-{name}-")):
            place = _place_of_run(run)
            if place is None or Path(os.path.abspath(place)) == here:  # noqa: PTH100
                continue
            # A run of birds-small begins as one of birds does.
            if slug(place.name) in (name, name.removeprefix(f"{slug(place.parent.name)}-")):
                return True
    return False


def _runs() -> Iterator[Path]:
    for path in sorted(RUNS.glob(f"*/{CONFIG_FILE}")):
        yield path.parent


def _place_of_run(run: Path) -> Path | None:
    """The folder that a run's data set lies in; None where its configuration has none or cannot be read."""
    try:
        values = read_toml(run / CONFIG_FILE)
    except MapolicyError:
        return None
    dataset = values.get("dataset")
    if not isinstance(dataset, str) or not dataset.startswith(FOLDER):
        return None
    return _folder(dataset, str(values.get("data_dir", "")))


def _place(config: TrainConfig) -> Path:
    return _folder(config.dataset, config.data_dir)


def _folder(dataset: str, data_dir: str) -> Path:
    """The path that `folder:PATH` stands for: a bare name is looked up in `data_dir` too."""
    text = dataset.removeprefix(FOLDER)
    path = Path(text).expanduser()
    return Path(data_dir) / text if not path.exists() and Path(text).name == text else path


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST_RESULT else None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
