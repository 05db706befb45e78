"""Where a folder data set lies: a bundle records the folder's name, and the runs in `runs` record its path."""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig
from ..errors import InputError, MapolicyError
from ..runtime.files import CONFIG_FILE, RESULT_FILE, plain_absolute
from ..runtime.toml_file import read_toml
from . import display
from .outputs import slug
from .resolve import Config
from .typed_command import completed

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
    why = f"the bundle has the folder's name, not its place, and it is not in {config.data_dir}"
    raise InputError(config.dataset, why, f"type {completed(dataset=f'{FOLDER}PATH/{name}')}")


def with_fitting_batches(
    configs: Sequence[Config], recipes: Sequence[str], typed: Collection[str], learns: bool
) -> tuple[list[Config], dict[str, str]]:
    """The configurations with the batch that suits a folder's number of training images, as a search's plan has it.

    A recipe's batch is never enlarged. A batch that the user typed stays; what it leaves over is a batch of its own.
    A folder that cannot be used is left to the run, which says why.

    Args:
        configs: of the networks that the command trains, on one data set.
        recipes: for each, where its settings come from, as `resolve` says; a recipe of the user's own stays as it is.
        typed: names of the settings that the user typed.
        learns: whether a policy is learned, which needs batches of one size.

    Returns:
        The configurations, and what was chosen: by setting its value with the reason.
    """
    first, chosen = configs[0], dict[str, str]()
    if not first.dataset.startswith(FOLDER) or not any(recipe.startswith("recipe ") for recipe in recipes):
        return list(configs), chosen
    from ..data.batch_sampler import NOTABLE_SHARE, batches_per_epoch, fitting_batch, left_out
    from ..data.splits import count_training_images
    from ..distributed import communicator

    try:
        images = count_training_images(first)
    except MapolicyError:
        return list(configs), chosen
    found = []
    for config, recipe in zip(configs, recipes, strict=True):
        parts = config.accumulate * communicator().size
        if recipe.startswith("recipe ") and images >= 2 * parts:
            size = min(fitting_batch(images, parts), max(config.batch_size // parts, 1) * parts)
            if "batch_size" not in typed and size != config.batch_size:
                config = config.with_changes(batch_size=size)
                each = batches_per_epoch(config, images)
                chosen["batch_size"] = f"{size}: {images} training images make {each} batches an epoch (--batch-size)"
            lost = left_out(config, images)
            if NOTABLE_SHARE * images <= lost < images and not learns and "last_batch" not in typed:
                config = config.with_changes(last_batch="keep")
                chosen["last_batch"] = f"keep: {lost} of {images} images would be left out (--set last_batch=)"
        found.append(config)
    return found, chosen


def dataset_slug(dataset: str, data_dir: str) -> str:
    """A data set's name as a part of file names, different for folders of the same name in different places.

    The first folder of a name gets the name alone. Where a run in `runs` has it for another folder, the parent's name
    comes before it, and where that is taken too, a hash of the path comes after it.
    """
    plain = slug(dataset)
    if not dataset.startswith(FOLDER):
        return plain
    here = plain_absolute(_folder(dataset, data_dir))  # as data sets are named
    short = hashlib.sha256(str(here).encode()).hexdigest()[:6]
    names = (plain, f"{slug(here.parent.name)}-{plain}", f"{plain}-{short}")
    return next((name for name in names[:-1] if not _taken(name, here)), names[-1])


def _taken(name: str, here: Path) -> bool:
    """Whether a run has this name for another folder."""
    for run in _runs():
        if run.name.startswith((f"search-{name}-", f"train-{name}-")):
            place = _place_of_run(run)
            if place is None or plain_absolute(place) == here:
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
