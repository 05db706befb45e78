"""Batches of uint8 images on the device.

A resident split is decoded once and stays in the device's memory. A streamed split is decoded by worker processes for
each batch: images that do not fit into memory, and pipelines that start with random resized crops. `kept_split.py` has
the splits of such pipelines whose images are decoded once.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ..errors import EnvironmentFault, MapolicyError
from ..runtime.sanitize import printable
from ..transforms.random_resized_crop import crop_kernel
from .batch_sampler import Plan
from .decode import bombs_as_errors
from .image_dataset import ImageSet
from .reading import Cropper

Result = TypeVar("Result")

CHUNK = 64  # images that a thread or a worker process takes at a time
PATIENCE, PATIENCE_PER_IMAGE = 10.0, 0.2  # seconds to wait for a batch before its worker counts as hanging
WORTH_WORKERS = 2_000  # images; decoding fewer is faster than starting processes


class Split(ABC):
    """The images of the training, meta-validation or test split.

    Attributes:
        labels: int64 [N], CPU.
        indices: int64 [N], CPU, ascending: positions in the data set's pool, or in its test split.
    """

    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @abstractmethod
    def batches(self, plan: Plan, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of a plan, in its order.

        Args:
            plan: for each batch its iteration number and int64 [b] positions in this split.
            augment: whether to crop at random; only a streamed split with base augmentation `random_resized_crop` does.

        Yields:
            Images uint8 [b, C, S, S] and labels int64 [b], both on the device.

        Raises:
            InputError: an image cannot be decoded.
            EnvironmentFault: a worker process died or hangs.
        """

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """One split with the images of this and of another split of the same data set."""


class ResidentSplit(Split):
    """Rows of one uint8 tensor on the device.

    Args:
        images: uint8 [M, C, S, S], shared by several splits.
        rows: int64 [N], CPU: this split's rows of `images`.
        labels: int64 [N].
        indices: int64 [N].
    """

    def __init__(self, images: Tensor, rows: Tensor, labels: Tensor, indices: Tensor) -> None:
        self.images, self.rows, self.labels, self.indices = images, rows, labels, indices

    @override
    def batches(self, plan: Plan, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.images.device
        for _, positions in plan:
            rows, labels = self.rows[positions], self.labels[positions]
            # Safe although the memory is not pinned: torch copies it before `to` returns.
            rows, labels = rows.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            yield self.images.index_select(0, rows), labels

    @override
    def merge(self, other: Self) -> Self:
        rows, labels, indices = merge_columns(
            (self.rows, self.labels, self.indices), (other.rows, other.labels, other.indices)
        )
        return type(self)(self.images, rows, labels, indices)


class StreamedSplit(Split):
    """Images that worker processes decode for each batch. The workers start and end with an iteration over `batches`.

    Args:
        images: the image set that they are read from.
        crop: reads them.
        indices: int64 [N]: this split's images.
        device: device of the batches.
        workers: number of processes; the batches do not depend on it.
    """

    def __init__(self, images: ImageSet, crop: Cropper, indices: Tensor, device: torch.device, workers: int) -> None:
        self.images, self.crop, self.indices = images, crop, indices
        self.labels = images.labels[indices]
        self.device = device
        # More processes than cores decode no faster, and torch warns.
        self.workers = min(workers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers)

    @override
    def batches(self, plan: Plan, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        if augment and self.crop.random_crop:
            crop_kernel()  # loads it once, and not in every worker
        pinned = self.device.type == "cuda"
        largest = max((len(positions) for _, positions in plan), default=0)
        loader: DataLoader[Any] = DataLoader(
            _PlannedBatches(self.images, self.crop, self.indices.tolist(), augment and self.crop.random_crop),
            batch_size=None,
            sampler=[(step, positions.tolist()) for step, positions in plan],
            num_workers=self.workers,
            pin_memory=pinned,
            timeout=patience(largest) if self.workers else 0,
            generator=torch.Generator().manual_seed(0),  # otherwise it would draw from the global one
        )
        with worker_faults():
            batches = iter(loader)
        try:
            for _, positions in plan:
                with worker_faults():
                    images = next(batches)
                if isinstance(images, MapolicyError):
                    raise images
                yield images.to(self.device, non_blocking=pinned), self.labels[positions].to(self.device)
        finally:
            # Torch ends workers when the iterator is garbage-collected; a traceback would keep it alive.
            getattr(batches, "_shutdown_workers", lambda: None)()

    @override
    def merge(self, other: Self) -> Self:
        (indices,) = merge_columns((self.indices,), (other.indices,))
        return type(self)(self.images, self.crop, indices, self.device, self.workers)


class _PlannedBatches(Dataset[Any]):
    """Item (step, positions) is a batch, or the error of a corrupt image: torch would wrap an exception in another."""

    def __init__(self, images: ImageSet, crop: Cropper, indices: list[int], augment: bool) -> None:
        self.images, self.crop, self.indices, self.augment = images, crop, indices, augment

    def __getitem__(self, item: tuple[int, list[int]]) -> Tensor | MapolicyError:
        step, positions = item
        size, channels = self.crop.reading.image_size, self.crop.reading.channels
        batch = torch.empty(len(positions), channels, size, size, dtype=torch.uint8)
        try:
            with bombs_as_errors():
                for row, position in enumerate(positions):
                    index = self.indices[position]
                    name = self.images.name(index)
                    if self.augment:
                        batch.numpy()[row] = self.crop.random(self.images.pixels(index), index, step, name)
                    else:
                        batch.numpy()[row] = self.crop.central(self.images.read(index), name)
        except MapolicyError as problem:
            return problem
        return batch


@contextmanager
def worker_faults() -> Iterator[None]:
    """Inside the block torch's RuntimeError about a worker process becomes an `EnvironmentFault`.

    Torch raises it from a signal handler, so it may also occur outside `Split.batches`: put this around the whole loop
    over batches.

    Raises:
        EnvironmentFault: a worker process died or hangs.
    """
    try:
        yield
    except RuntimeError as problem:
        if not str(problem).startswith("DataLoader "):
            raise
        why = printable(str(problem).splitlines()[0])[:120]
        raise EnvironmentFault(
            "a data worker", why, "check memory and disk, or set workers lower, then resume"
        ) from problem


@dataclass(frozen=True)
class SplitLoader:
    """Loads the images of a run's splits: into the device's memory if they fit, else as streams.

    Args:
        crop: reads each image.
        device: device of the batches.
        workers: processes that decode streamed images.
        memory_limit_gib: GiB up to which images are resident.
    """

    crop: Cropper
    device: torch.device
    workers: int
    memory_limit_gib: float

    def load(self, images: ImageSet, groups: Sequence[Tensor]) -> list[Split]:
        """Splits of one image set: all resident, in one tensor, or all streamed.

        Args:
            images: the image set.
            groups: for each split its indices, int64, ascending, disjoint from the others.

        Raises:
            CorruptImageError: a resident image cannot be decoded.
            EnvironmentFault: the images do not fit on the device.
        """
        used = torch.cat(list(groups)).sort().values
        gib = len(used) * self.crop.reading.channels * self.crop.reading.image_size**2 / 2**30
        if self.crop.random_crop or gib > self.memory_limit_gib:
            return [StreamedSplit(images, self.crop, group, self.device, self.workers) for group in groups]
        try:
            pixels = self._decode(images, used).to(self.device)
        except (torch.OutOfMemoryError, MemoryError):
            why = f"the images take {gib:.1f} GiB, more than is free on {self.device}"
            raise EnvironmentFault("data set", why, "lower memory_limit_gib, so that they are streamed") from None
        rows = [torch.searchsorted(used, group) for group in groups]
        return [ResidentSplit(pixels, at, images.labels[group], group) for at, group in zip(rows, groups, strict=True)]

    def _decode(self, images: ImageSet, indices: Tensor) -> Tensor:
        size, total = self.crop.reading.image_size, len(indices)
        decoded = torch.empty(total, self.crop.reading.channels, size, size, dtype=torch.uint8)
        # Threads would not help: for small images most of the time is spent in Python.
        workers = self.workers if total > WORTH_WORKERS else 0
        reader = StreamedSplit(images, self.crop, indices, torch.device("cpu"), workers)
        chunks = [torch.arange(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK)]
        for rows, (pixels, _) in zip(chunks, reader.batches([(0, rows) for rows in chunks]), strict=True):
            decoded[rows[0] : rows[-1] + 1] = pixels
        return decoded


def patience(images: int) -> float:
    """Seconds to wait for a batch of so many images."""
    return PATIENCE + PATIENCE_PER_IMAGE * images


def threaded_map(items: Sequence[int], function: Callable[[int], Result]) -> list[Result]:
    """The function's results in the order of the items, computed by several threads; the first error is raised."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [
            result for part in pool.map(lambda chunk: [function(item) for item in chunk], chunks) for result in part
        ]


def merge_columns(own: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> list[Tensor]:
    """Concatenate the columns of two splits, and sort the rows by the last column, the indices."""
    columns = [torch.cat(pair) for pair in zip(own, other, strict=True)]
    order = columns[-1].argsort()
    return [column[order] for column in columns]
