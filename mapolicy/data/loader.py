"""Batches of uint8 images on the device: out of one tensor that holds them all, or decoded by worker processes.

Images that fit into memory are decoded once and stay on the device (resident). Others, and every pipeline that starts
with random resized crops, are decoded as they are needed (streamed).
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

from ..errors import EnvironmentFault, MapolicyError
from ..runtime.sanitize import printable
from .batch_sampler import Plan
from .decode import ResizedCrop, bombs_as_errors
from .image_dataset import ImageSet

Result = TypeVar("Result")

CHUNK = 64  # images that a thread or a process takes at a time
PATIENCE, PATIENCE_PER_IMAGE = 10.0, 0.2  # seconds for a batch; a worker that takes longer hangs
WORTH_WORKERS = 2_000  # images; fewer are decoded before processes would have started


class Split(ABC):
    """Images that training, meta-validation or testing may use.

    Attributes:
        labels: int64 [N], CPU.
        indices: int64 [N], CPU, ascending: positions in the data set's own order (of its pool, or of its test split).
    """

    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @abstractmethod
    def batches(self, plan: Plan, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a plan, in its order.

        Args:
            plan: for every batch its step (iteration number) and positions int64 [b] into this split.
            augment: whether to crop at random, where that is done as images are decoded (base augmentation
                `random_resized_crop`); without effect elsewhere.

        Yields:
            Images uint8 [b, C, S, S] and labels int64 [b], both on the device.

        Raises:
            InputError: an image cannot be decoded.
            EnvironmentFault: a worker process died or hangs.
        """

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """This split and another of the same data set as one."""


class ResidentSplit(Split):
    """Rows of one uint8 tensor on the device.

    Args:
        images: uint8 [M, C, S, S], shared by splits.
        rows: int64 [N], CPU: this split's rows.
        labels: int64 [N].
        indices: int64 [N].
    """

    def __init__(self, images: Tensor, rows: Tensor, labels: Tensor, indices: Tensor) -> None:
        self.images, self.rows, self.labels, self.indices = images, rows, labels, indices

    def batches(self, plan: Plan, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Split.batches`, by looking rows up; nothing is decoded, so `augment` is without effect."""
        device = self.images.device
        for _, positions in plan:
            rows, labels = self.rows[positions], self.labels[positions]
            # Not waited for: out of memory that is not pinned, torch has taken a copy before `to` returns.
            rows, labels = rows.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            yield self.images.index_select(0, rows), labels

    def merge(self, other: Self) -> Self:
        """As `Split.joined`; both share their images."""
        rows, labels, indices = _merged(
            (self.rows, self.labels, self.indices), (other.rows, other.labels, other.indices)
        )
        return type(self)(self.images, rows, labels, indices)


class StreamedSplit(Split):
    """Images that worker processes decode.

    Args:
        images: where they are read.
        framing: how they become the network's input.
        indices: int64 [N]: this split's images.
        device: where batches go.
        workers: processes; the batches do not depend on their number.
    """

    def __init__(
        self, images: ImageSet, framing: ResizedCrop, indices: Tensor, device: torch.device, workers: int
    ) -> None:
        self.images, self.framing, self.indices = images, framing, indices
        self.labels = images.labels[indices]
        self.device = device
        # More processes than cores decode no faster, and torch warns.
        self.workers = min(workers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers)

    def batches(self, plan: Plan, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Split.batches`; the workers start with the first batch and end with the iterator."""
        pinned = self.device.type == "cuda"
        largest = max((len(positions) for _, positions in plan), default=0)
        loader: DataLoader[Any] = DataLoader(
            _PlannedBatches(self.images, self.framing, self.indices.tolist(), augment and self.framing.random_crop),
            batch_size=None,
            sampler=[(step, positions.tolist()) for step, positions in plan],
            num_workers=self.workers,
            pin_memory=pinned,
            timeout=PATIENCE + PATIENCE_PER_IMAGE * largest if self.workers else 0,
            generator=torch.Generator().manual_seed(0),  # without one of its own it draws from the global one
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
            # Torch ends workers when the iterator is collected, and a traceback that is kept would put that off.
            getattr(batches, "_shutdown_workers", lambda: None)()

    def merge(self, other: Self) -> Self:
        """As `Split.joined`; read as this split is."""
        (indices,) = _merged((self.indices,), (other.indices,))
        return type(self)(self.images, self.framing, indices, self.device, self.workers)


class _PlannedBatches(Dataset[Any]):
    """Item (step, positions) is a batch; what was wrong with an image is an item too, as torch would wrap an error."""

    def __init__(self, images: ImageSet, framing: ResizedCrop, indices: list[int], augment: bool) -> None:
        self.images, self.framing, self.indices, self.augment = images, framing, indices, augment

    def __getitem__(self, item: tuple[int, list[int]]) -> Tensor | MapolicyError:
        step, positions = item
        size = self.framing.image_size
        batch = torch.empty(len(positions), self.framing.channels, size, size, dtype=torch.uint8)
        try:
            with bombs_as_errors():
                for row, position in enumerate(positions):
                    index = self.indices[position]
                    image = self.images.read(index)
                    framed = self.framing.random(image, index, step) if self.augment else self.framing.central(image)
                    batch.numpy()[row] = framed
        except MapolicyError as problem:
            return problem
        return batch


@contextmanager
def worker_faults() -> Iterator[None]:
    """Turns what torch raises about a dead or hanging worker process into an error of ours.

    Torch raises it from a signal handler, so it may also come up outside of `Split.batches`: put this around a loop
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
    """How the images of a run are held.

    Args:
        framing: how an image becomes the network's input.
        device: where batches go.
        workers: processes that decode streamed images.
        memory_limit_gib: GiB up to which images are resident.
    """

    framing: ResizedCrop
    device: torch.device
    workers: int
    memory_limit_gib: float

    def load(self, images: ImageSet, groups: Sequence[Tensor]) -> list[Split]:
        """Splits of one image set: all resident, in one tensor, or all streamed.

        Args:
            images: the image set.
            groups: the indices of each split, int64, ascending, disjoint.

        Raises:
            CorruptImageError: a resident image cannot be decoded.
            EnvironmentFault: the images do not fit on the device.
        """
        framing = self.framing
        used = torch.cat(list(groups)).sort().values
        gib = len(used) * framing.channels * framing.image_size**2 / 2**30
        if framing.random_crop or gib > self.memory_limit_gib:
            return [StreamedSplit(images, framing, group, self.device, self.workers) for group in groups]
        try:
            held = self._decoded(images, used).to(self.device)
        except (torch.OutOfMemoryError, MemoryError):
            why = f"the images take {gib:.1f} GiB, which {self.device} has not got"
            raise EnvironmentFault("data set", why, "lower memory_limit_gib, so that they are streamed") from None
        rows = [torch.searchsorted(used, group) for group in groups]
        return [ResidentSplit(held, at, images.labels[group], group) for at, group in zip(rows, groups, strict=True)]

    def _decoded(self, images: ImageSet, indices: Tensor) -> Tensor:
        size, total = self.framing.image_size, len(indices)
        held = torch.empty(total, self.framing.channels, size, size, dtype=torch.uint8)
        # Threads would not help: of a small image's decoding most is Python.
        workers = self.workers if total > WORTH_WORKERS else 0
        reader = StreamedSplit(images, self.framing, indices, torch.device("cpu"), workers)
        chunks = [torch.arange(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK)]
        for rows, (pixels, _) in zip(chunks, reader.batches([(0, rows) for rows in chunks]), strict=True):
            held[rows[0] : rows[-1] + 1] = pixels
        return held


def threaded_map(items: Sequence[int], function: Callable[[int], Result]) -> list[Result]:
    """The function's results in the order of the items, worked out by several threads; the first error is raised."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [
            result for part in pool.map(lambda chunk: [function(item) for item in chunk], chunks) for result in part
        ]


def _merged(own: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> list[Tensor]:
    """Columns of two splits, one below the other, in ascending order of the last one, the indices."""
    columns = [torch.cat(pair) for pair in zip(own, other, strict=True)]
    order = columns[-1].argsort()
    return [column[order] for column in columns]
