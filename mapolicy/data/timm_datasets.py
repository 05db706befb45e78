"""Data sets of `timm.data.create_dataset`: torchvision's, Hugging Face's, TensorFlow's, WebDataset's."""

import io
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from ..errors import InputError, UsageError
from ..runtime.sanitize import printable
from .decode import corrupt, decode, is_gray
from .image_dataset import ArrayImages, FileImages, ImageSet, Source, check_same_classes

# Splits that torchvision has no labelled test images for.
_VALIDATION_ONLY = ("imagenet", "places365", "inaturalist", "inat")


class ReaderImages(ImageSet):
    """Images of a timm reader with random access.

    `timm.data.ImageDataset` is passed by: it puts another image in the place of one that cannot be decoded.
    """

    def __init__(self, reader: Any, labels: Iterable[Any]) -> None:
        self.reader = reader
        self.labels = torch.tensor(whole_labels(labels), dtype=torch.int64)

    def name(self, index: int) -> str:
        """As in `ImageSet`."""
        return str(index)

    def content(self, index: int) -> bytes:
        """As in `ImageSet`."""
        with self.reader[index][0] as file:
            return bytes(file.read())

    def read(self, index: int) -> Image.Image:
        """As in `ImageSet`."""
        return decode(self.content(index), f"image {index}")

    def gray(self, index: int) -> bool:
        """As in `ImageSet`."""
        return is_gray(self.content(index), f"image {index}")


class PairImages(ImageSet):
    """Images of a torchvision data set whose items are (PIL image, label)."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        labels = getattr(dataset, "targets", None)
        if labels is None:
            labels = (dataset[index][1] for index in range(len(dataset)))
        self.labels = torch.tensor(whole_labels(labels), dtype=torch.int64)

    def name(self, index: int) -> str:
        """As in `ImageSet`."""
        return str(index)

    def content(self, index: int) -> bytes:
        """As in `ImageSet`."""
        image = self.read(index)
        return f"{image.mode}{image.size}".encode() + image.tobytes()

    def read(self, index: int) -> Image.Image:
        """As in `ImageSet`."""
        try:
            image: Image.Image = self.dataset[index][0]
            return image if image.mode in ("L", "RGB") else image.convert("RGB")
        except Exception as problem:  # whatever the data set's own loader raises
            raise corrupt(f"image {index}", f"cannot be read ({problem})") from None

    def gray(self, index: int) -> bool:
        """As in `ImageSet`."""
        return self.read(index).mode == "L"


def open_timm(name: str, data_dir: Path, memory_limit_gib: float) -> Source:
    """The split `train` as the pool; `test`, or else `validation`, as the test split where the data set has one.

    Args:
        name: timm's name, prefix included.
        data_dir: what timm calls the root: data is read from there, and downloaded to it.
        memory_limit_gib: GiB that an iterable data set may take; it is read once, into memory.

    Raises:
        InputError: timm cannot open it (its message is quoted), or it is too large to be held in memory.
        UsageError: nothing stands behind the prefix.
    """
    prefix, _, rest = name.partition("/")
    if not rest.strip("/"):
        raise UsageError("data set", f"nothing stands behind {printable(prefix)}/", f"write {printable(prefix)}/NAME")
    dataset = _create(name, data_dir, "train")
    classes, pool = _images(dataset, name, memory_limit_gib)
    split = _test_split(prefix.lower(), rest.lower(), dataset, data_dir)

    def open_test() -> ImageSet:
        # Where the reader knows no names, its numbers are those of the pool, whichever of them occur.
        found, images = _images(_create(name, data_dir, str(split)), name, memory_limit_gib, len(classes))
        check_same_classes(printable(name), classes, found)
        return images

    # A reader may take a path for a name; data sets are recorded without paths.
    public = f"{prefix}/{Path(rest).name}" if Path(rest).is_absolute() or Path(rest).exists() else name
    return Source(printable(public), printable(name), classes, pool, open_test if split else None)


def whole_labels(labels: Iterable[Any]) -> list[int]:
    """Labels as whole numbers.

    Raises:
        InputError: a label is missing or is no whole number.
    """
    result = []
    for label in labels:
        number = label.item() if isinstance(label, (torch.Tensor, np.generic)) else label
        if not isinstance(number, int) or isinstance(number, bool):
            raise InputError("data set", f"label {printable(number)[:40]!r} is no whole number", "use another data set")
        result.append(number)
    return result


def _create(name: str, data_dir: Path, split: str) -> Any:
    from timm.data.dataset_factory import create_dataset

    try:
        with redirect_stdout(io.StringIO()):  # readers print what to install
            return create_dataset(name, root=str(data_dir), split=split, download=True)
    except ImportError as problem:
        package = problem.name or "a package"
        raise InputError(
            printable(name), f"needs {package}, which is not installed", f"pip install {package}"
        ) from problem
    except Exception as problem:  # every reader has errors of its own
        why = f"timm cannot open its split {split} ({type(problem).__name__}: {problem})"
        raise InputError(printable(name), printable(why)[:150], "check the name and data_dir") from problem


def _images(
    dataset: Any, name: str, memory_limit_gib: float, known_classes: int = 0
) -> tuple[tuple[str, ...], ImageSet]:
    from torchvision.datasets import DatasetFolder

    reader = getattr(dataset, "reader", None)
    images: ImageSet
    if isinstance(dataset, DatasetFolder):
        # Its own loader would turn every image into RGB.
        root = Path(dataset.root)
        names = [Path(path).relative_to(root).as_posix() for path, _ in dataset.samples]
        images = FileImages(root, names, [label for _, label in dataset.samples])
    elif isinstance(dataset, IterableDataset):
        images = _held(dataset, name, memory_limit_gib)
    elif reader is not None:
        images = ReaderImages(reader, reader.iter_targets())
    else:
        images = PairImages(dataset)
    numbers: dict[str, int] = getattr(reader, "class_to_idx", None) or {}
    named = getattr(dataset, "classes", None) or sorted(numbers, key=lambda each: numbers[each])
    if not named:
        highest = int(images.labels.max()) if len(images) else -1
        named = range(max(highest + 1, known_classes))
    return tuple(str(each) for each in named), images


def _held(dataset: Iterable[tuple[Image.Image, Any]], name: str, memory_limit_gib: float) -> ArrayImages:
    """An iterable data set, read once."""
    arrays, labels, used = [], [], 0
    for image, label in dataset:
        array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        used += array.nbytes
        if used > memory_limit_gib * 2**30:
            why = f"can only be read in order, and takes more than memory_limit_gib = {memory_limit_gib:g}"
            raise InputError(printable(name), why, "raise memory_limit_gib, or use a map-style data set (hfds/)")
        arrays.append(array)
        labels.append(label)
    return ArrayImages(arrays, whole_labels(labels))


def _test_split(prefix: str, rest: str, dataset: Any, data_dir: Path) -> str | None:
    if prefix == "torch" and rest in ("image_folder", "folder"):
        # Without a folder of the split's name timm would give the whole root once more.
        if Path(dataset.root) == data_dir:
            return None
        folders = {"test": ("test",), "validation": ("validation", "val", "valid", "eval", "evaluation")}
        names = {split for split, known in folders.items() if any((data_dir / each).is_dir() for each in known)}
    elif prefix == "torch":
        return "validation" if rest in _VALIDATION_ONLY else "test"
    else:
        names = _split_names(dataset.reader)
    return next((split for split in ("test", "validation") if split in names), None)


def _split_names(reader: Any) -> set[str]:
    """Names of a data set's splits: `info` is the reader's own, its builder's or its data set's."""
    for holder in (reader, getattr(reader, "builder", None), getattr(reader, "dataset", None)):
        info = getattr(holder, "info", None)
        splits = info.get("splits") if isinstance(info, dict) else getattr(info, "splits", None)
        if splits:
            return set(splits)
    return set()
