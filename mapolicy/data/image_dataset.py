"""Ordered sets of labelled images that are read one by one, and what a data set consists of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..runtime.sanitize import printable
from .decode import corrupt, decode, is_gray, read_file


class ImageSet(ABC):
    """Images in a fixed order, with their labels. Reading is lazy, repeatable and safe from several threads.

    Attributes:
        labels: int64 [N], CPU.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What identifies the image within its data set: a path relative to the data set, or a number."""

    @abstractmethod
    def content(self, index: int) -> bytes:
        """The bytes that the image is read from; equal bytes are equal images."""

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """The decoded image, mode `L` or `RGB`.

        Raises:
            CorruptImageError: it cannot be decoded.
        """

    @abstractmethod
    def gray(self, index: int) -> bool:
        """Whether the image has one channel; known without decoding it."""

    def size(self, index: int) -> int:
        """Bytes of the image's file; 0 where images have no files."""
        return 0


class FileImages(ImageSet):
    """Image files.

    Args:
        folder: what the names are relative to.
        names: relative paths.
        labels: class of each.
    """

    def __init__(self, folder: Path, names: Sequence[str], labels: Sequence[int]) -> None:
        self.folder, self.names = str(folder), tuple(names)
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def name(self, index: int) -> str:
        """As in `ImageSet`."""
        return self.names[index]

    def content(self, index: int) -> bytes:
        """As in `ImageSet`."""
        return read_file(self._path(index))

    def read(self, index: int) -> Image.Image:
        """As in `ImageSet`."""
        path = self._path(index)
        return decode(read_file(path), path)

    def gray(self, index: int) -> bool:
        """As in `ImageSet`."""
        path = self._path(index)
        return is_gray(read_file(path), path)

    def size(self, index: int) -> int:
        """As in `ImageSet`."""
        try:
            return Path(self._path(index)).stat().st_size
        except OSError as problem:
            raise corrupt(self._path(index), problem.strerror or "cannot be read") from None

    def _path(self, index: int) -> str:
        return f"{self.folder}/{self.names[index]}"  # joining with pathlib costs a tenth of decoding a small image


class ArrayImages(ImageSet):
    """Images held as arrays.

    Args:
        arrays: uint8, each [H, W] or [H, W, 3].
        labels: class of each.
    """

    def __init__(self, arrays: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], labels: Sequence[int]) -> None:
        self.arrays = arrays
        self.labels = torch.as_tensor(np.asarray(labels, dtype=np.int64))

    def name(self, index: int) -> str:
        """As in `ImageSet`."""
        return str(index)

    def content(self, index: int) -> bytes:
        """As in `ImageSet`."""
        array = self.arrays[index]
        return f"{array.shape}".encode() + array.tobytes()

    def read(self, index: int) -> Image.Image:
        """As in `ImageSet`."""
        return Image.fromarray(self.arrays[index])

    def gray(self, index: int) -> bool:
        """As in `ImageSet`."""
        return self.arrays[index].ndim == 2


@dataclass(frozen=True)
class DatasetRequest:
    """What the function that opens a data set is given.

    Attributes:
        name: the data set's name as the user typed it.
        data_dir: folder that data sets are read from and downloaded to.
        memory_limit_gib: GiB that a data set may take which can only be read from beginning to end.
        download: whether a data set that is not there may be fetched.
    """

    name: str
    data_dir: Path
    memory_limit_gib: float = 4.0
    download: bool = True


@dataclass(frozen=True)
class Source:
    """A data set by name, before it is split.

    Args:
        name: the data set's name, without any path: `cifar100`, `folder:flowers`.
        where: what an error calls the data set: its name, or its folder.
        classes: names, by label.
        pool: the images that training and meta-validation are drawn from, and the test split too where `open_test` is
            None.
        open_test: opens the data set's own test split; called at most once, and not before it is needed.
        check_test: looks whether the test split has the same classes, without reading an image; None where that
            cannot be known so cheaply.
    """

    name: str
    where: str
    classes: tuple[str, ...]
    pool: ImageSet
    open_test: Callable[[], ImageSet] | None = None
    check_test: Callable[[], object] | None = None


def check_same_classes(where: str, expected: tuple[str, ...], found: tuple[str, ...]) -> None:
    """Refuse a test split whose classes are not those of the training split.

    Raises:
        InputError: names a class that only one of them has.
    """
    if expected == found:
        return
    odd = sorted(set(expected) ^ set(found))
    why = f"class {printable(odd[0])!r} is in only one of the two splits" if odd else "classes are in another order"
    raise InputError(where, f"test and training split differ: {why}", "give both the same classes")
