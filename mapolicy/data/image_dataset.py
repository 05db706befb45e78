"""Ordered sets of labelled images that are read one by one, and the `Source` that a data set's name opens."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typing_extensions import override

from ..errors import InputError
from ..runtime.sanitize import printable
from .decode import Header, corrupt, decode, decode_pixels, read_file, read_file_header
from .folders import LeftOut


class ImageSet(ABC):
    """Images with labels in a fixed order. Reading is lazy, repeatable and thread-safe.

    Attributes:
        labels: int64 [N], CPU.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The image's name within its data set: a path relative to the data set, or else its number."""
        return str(index)

    def place(self, index: int) -> str:
        """The image's name for people, who also want to know the folder of its split."""
        return self.name(index)

    def state(self, index: int) -> Hashable | None:
        """What is another value once the image's file is another; None without a file, or where it is missing."""
        return None

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Bytes that determine the image: its file, or its pixels where it has no file."""

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """The decoded image, of any mode of Pillow's and upright.

        Raises:
            CorruptImageError: it cannot be decoded.
        """

    def pixels(self, index: int, shrink: float = 1.0) -> Image.Image | NDArray[np.uint8]:
        """The decoded image in the form that is there soonest: `read`'s, or its pixels, uint8 [H, W, 1 or 3].

        Args:
            index: of the image.
            shrink: how many times smaller it may be where that is faster.

        Raises:
            CorruptImageError: it cannot be decoded.
        """
        return self.read(index)

    def header(self, index: int) -> Header:
        """Size and kind of the image; files are not decoded to find out.

        Raises:
            CorruptImageError: it is no image.
        """
        return Header.of(self.read(index))

    def size(self, index: int) -> int:
        """Size of the image's file in bytes; 0 where images have no files."""
        return 0


class FileImages(ImageSet):
    """Image files.

    Args:
        folder: the folder that the names are relative to.
        names: relative paths.
        labels: class of each image.
        split: the folder's own name where it is a split's, which people want to see before the names.
    """

    def __init__(self, folder: Path, names: Sequence[str], labels: Sequence[int], split: str = "") -> None:
        self.folder, self.names = str(folder), tuple(names)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self._split = f"{split}/" if split else ""

    @override
    def name(self, index: int) -> str:
        return self.names[index]

    @override
    def place(self, index: int) -> str:
        return self._split + self.names[index]

    @override
    def state(self, index: int) -> Hashable | None:
        try:
            facts = Path(self._path(index)).stat()
        except OSError:
            return None
        return self._path(index), facts.st_size, facts.st_mtime_ns

    @override
    def content(self, index: int) -> bytes:
        return read_file(self._path(index))

    @override
    def read(self, index: int) -> Image.Image:
        path = self._path(index)
        return decode(read_file(path), path)

    @override
    def pixels(self, index: int, shrink: float = 1.0) -> Image.Image | NDArray[np.uint8]:
        path = self._path(index)
        return decode_pixels(read_file(path), path, shrink)

    @override
    def header(self, index: int) -> Header:
        return read_file_header(self._path(index))

    @override
    def size(self, index: int) -> int:
        try:
            return Path(self._path(index)).stat().st_size
        except OSError as problem:
            raise corrupt(self._path(index), problem.strerror or "cannot be read") from None

    def _path(self, index: int) -> str:
        return f"{self.folder}/{self.names[index]}"  # pathlib would take a tenth of the time of decoding a small image


class ArrayImages(ImageSet):
    """Images in memory, as arrays.

    Args:
        arrays: uint8, each [H, W] or [H, W, 3].
        labels: class of each image.

    Raises:
        ValueError: an image is of another kind, or there are not as many labels as images.
    """

    def __init__(self, arrays: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], labels: Sequence[int]) -> None:
        if len(arrays) != len(labels):
            raise ValueError(f"{len(arrays)} images came with {len(labels)} labels")
        # All images of one array are of the same kind.
        for index, array in enumerate(arrays[:1] if isinstance(arrays, np.ndarray) else arrays):
            dtype, shape = getattr(array, "dtype", type(array).__name__), np.shape(array)
            if dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
                raise ValueError(f"image {index} is {dtype} {list(shape)}, expected uint8 [H, W] or [H, W, 3]")
        self.arrays = arrays
        self.labels = torch.as_tensor(np.asarray(labels, dtype=np.int64))

    @override
    def content(self, index: int) -> bytes:
        array = self.arrays[index]
        return f"{array.shape}".encode() + array.tobytes()

    @override
    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.arrays[index])

    @override
    def header(self, index: int) -> Header:
        height, width, *colours = self.arrays[index].shape
        return Header(width, height, "RGB" if colours else "L")


@dataclass(frozen=True)
class DatasetRequest:
    """What the function that opens a data set is given.

    Attributes:
        name: the data set's name as the user typed it.
        data_dir: folder that data sets are read from and downloaded to.
        memory_limit_gib: GiB that a data set may take which can only be read from beginning to end.
        download: whether a data set that is not there may be fetched.
        nested_classes: whether the class folders of `folder:PATH` may hold nothing but folders of images.
    """

    name: str
    data_dir: Path
    memory_limit_gib: float = 4.0
    download: bool = True
    nested_classes: bool = False


@dataclass(frozen=True)
class Source:
    """An opened data set, before it is split.

    Args:
        name: the data set's name without a path, such as `cifar100` or `folder:flowers`.
        where: the data set's name or folder, for errors.
        classes: class names, by label.
        pool: images for the training and meta-validation splits, and for the test split where `open_test` is None.
        open_test: opens the data set's own test split; called at most once, when the split is needed.
        check_test: checks without reading an image that the test split has the same classes; None where that needs the
            images.
        meta_validation: int64, positions in the pool of the data set's own validation split; None where it has none.
        notes: sentences for the user on how the data set was understood.
        left_out: files and folders that are not used; opening the test split adds those that lie in it.
    """

    name: str
    where: str
    classes: tuple[str, ...]
    pool: ImageSet
    open_test: Callable[[], ImageSet] | None = None
    check_test: Callable[[], object] | None = None
    meta_validation: Tensor | None = None
    notes: tuple[str, ...] = ()
    left_out: list[LeftOut] = field(default_factory=list)


def check_same_classes(where: str, expected: tuple[str, ...], found: tuple[str, ...]) -> None:
    """Check that another split has the classes of the training split, in the same order.

    Raises:
        InputError: it has not; the message names a class that only one of them has.
    """
    if expected == found:
        return
    odd = sorted(set(expected) ^ set(found))
    only = "the training split" if odd and odd[0] in expected else "this split"
    why = f"class {printable(odd[0])!r} is only in {only}" if odd else "classes are in another order"
    raise InputError(where, f"its classes are not the training split's: {why}", "give both the same classes")
