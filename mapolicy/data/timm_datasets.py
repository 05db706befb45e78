"""Data sets of `timm.data.create_dataset`: from torchvision, Hugging Face, TensorFlow Datasets and WebDataset."""

import io
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from typing_extensions import override

from ..errors import InputError, UsageError
from ..runtime.sanitize import printable
from .decode import Header, corrupt, decode, read_header
from .image_dataset import ArrayImages, FileImages, ImageSet, Source, check_same_classes

# Data sets whose test images have no labels in torchvision; their validation split is the test split.
_VALIDATION_ONLY = ("imagenet", "places365", "inaturalist", "inat")


class ReaderImages(ImageSet):
    """Images of a timm reader with random access.

    Not `timm.data.ImageDataset`, which replaces an image that cannot be decoded by another.
    """

    def __init__(self, reader: Any, labels: Iterable[Any]) -> None:
        self.reader = reader
        self.labels = torch.tensor(whole_labels(labels), dtype=torch.int64)

    @override
    def content(self, index: int) -> bytes:
        with self.reader[index][0] as file:
            return bytes(file.read())

    @override
    def read(self, index: int) -> Image.Image:
        return decode(self.content(index), f"image {index}")

    @override
    def header(self, index: int) -> Header:
        return read_header(self.content(index), f"image {index}")


class PairImages(ImageSet):
    """Images of a torchvision data set whose items are (PIL image, label)."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        labels = getattr(dataset, "targets", None)
        if labels is None:
            labels = (dataset[index][1] for index in range(len(dataset)))
        self.labels = torch.tensor(whole_labels(labels), dtype=torch.int64)

    @override
    def content(self, index: int) -> bytes:
        image = self.read(index)
        return f"{image.mode}{image.size}".encode() + image.tobytes()

    @override
    def read(self, index: int) -> Image.Image:
        try:
            image: Image.Image = self.dataset[index][0]
            return image if image.mode in ("L", "RGB") else image.convert("RGB")
        except Exception as problem:  # loaders of data sets raise exceptions of many kinds
            raise corrupt(f"image {index}", f"cannot be read ({problem})") from None


def open_timm(name: str, data_dir: Path, memory_limit_gib: float) -> Source:
    """Open a data set with its split `train` as the pool, and `test` or else `validation` as its test split.

    Args:
        name: timm's name with its prefix, such as `hfds/cifar10`.
        data_dir: timm's `root`: the folder to read from and to download to.
        memory_limit_gib: GiB that an iterable data set may take; it is read once, into memory.

    Raises:
        InputError: timm cannot open it (the message repeats timm's), or it is too large for memory.
        UsageError: there is no name after the prefix.
    """
    prefix, _, rest = name.partition("/")
    if not rest.strip("/"):
        raise UsageError("data set", f"there is no name after {printable(prefix)}/", f"write {printable(prefix)}/NAME")
    dataset = _create(name, data_dir, "train")
    classes, pool = _images(dataset, name, memory_limit_gib)
    split = _test_split(prefix.lower(), rest.lower(), dataset, data_dir)

    def open_test() -> ImageSet:
        # Without class names the labels are numbers; the test split has the pool's, even if some do not occur in it.
        found, images = _images(_create(name, data_dir, str(split)), name, memory_limit_gib, len(classes))
        check_same_classes(printable(name), classes, found)
        return images

    # The name may be a path; bundles record data sets without paths.
    public = f"{prefix}/{Path(rest).name}" if Path(rest).is_absolute() or Path(rest).exists() else name
    return Source(printable(public), printable(name), classes, pool, open_test if split else None)


def whole_labels(labels: Iterable[Any]) -> list[int]:
    """Labels as Python integers.

    Raises:
        InputError: a label is missing or not a whole number.
    """
    result = []
    for label in labels:
        number = label.item() if isinstance(label, (torch.Tensor, np.generic)) else label
        if not isinstance(number, int) or isinstance(number, bool):
            raise InputError(
                "data set", f"label {printable(number)[:40]!r} is not a whole number", "use another data set"
            )
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
    except Exception as problem:  # readers raise exceptions of many kinds
        why = f"timm cannot open its split {split} ({type(problem).__name__}: {problem})"
        raise InputError(printable(name), printable(why)[:150], "check the name and data_dir") from problem


def _images(
    dataset: Any, name: str, memory_limit_gib: float, known_classes: int = 0
) -> tuple[tuple[str, ...], ImageSet]:
    from torchvision.datasets import DatasetFolder

    reader = getattr(dataset, "reader", None)
    images: ImageSet
    if isinstance(dataset, DatasetFolder):
        # Its own loader converts every image to RGB.
        root = Path(dataset.root)
        names = [Path(path).relative_to(root).as_posix() for path, _ in dataset.samples]
        images = FileImages(root, names, [label for _, label in dataset.samples])
    elif isinstance(dataset, IterableDataset):
        images = _read_all(dataset, name, memory_limit_gib)
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


def _read_all(dataset: Iterable[tuple[Image.Image, Any]], name: str, memory_limit_gib: float) -> ArrayImages:
    """Read an iterable data set into memory."""
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
        # Without a folder of the split's name timm would return the whole root again.
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
    """Names of a data set's splits, from the `info` of the reader, its builder or its data set."""
    for holder in (reader, getattr(reader, "builder", None), getattr(reader, "dataset", None)):
        info = getattr(holder, "info", None)
        splits = info.get("splits") if isinstance(info, dict) else getattr(info, "splits", None)
        if splits:
            return set(splits)
    return set()
