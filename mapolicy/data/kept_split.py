"""Batches from kept images: decoded once by workers, while the first epoch trains, and cropped in batches from then on.

Where an image is kept does not change a batch: one that could not be kept is decoded anew.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ..errors import MapolicyError
from ..transforms.random_resized_crop import RandomResizedCrop, crop_flat, crop_kernel, scaled_boxes
from .batch_sampler import Plan
from .decode import bombs_as_errors
from .image_dataset import ImageSet
from .kept_images import KeptImages
from .loader import StreamedSplit, merge_columns, patience, worker_faults
from .reading import ImageReading, Size

Pixels = NDArray[np.uint8]

SHARPER = 1.25  # for a smaller copy a file is decoded at no less than so many times the copy's size
PIECE = 2**24  # bytes of decoded images that a worker hands over at once, or a single image


@dataclass(frozen=True)
class KeptReader:
    """Reads images as they are kept.

    Attributes:
        images: the image set.
        reading: how its images are read.
        sizes: by position in the image set, width and height as the header says; (0, 0) for an unreadable one.
        whole: whether images keep their size; else they are made smaller.
    """

    images: ImageSet
    reading: ImageReading
    sizes: Mapping[int, Size]
    whole: bool

    def size(self, index: int) -> Size:
        """Width and height that an image is kept at; (0, 0) for an unreadable one."""
        own = self.sizes[index]
        if min(own) == 0:
            return 0, 0
        return self.reading.whole_size(*own) if self.whole else self.reading.small_size(*own)

    def for_crops(self, index: int) -> Pixels:
        """The image at its kept size, uint8, [height, width, C] if it is whole, else [C, height, width]."""
        name, own = self.images.name(index), self.sizes[index]
        if self.whole:
            return self.reading.whole(self.images.pixels(index), name)
        if min(own) == 0:
            return self.reading.small(self.images.read(index), own, name)  # says what is wrong with it
        kept = self.size(index)
        shrink = min(own) / min(kept) if self.reading.resize == "crop" else max(own) / max(kept)
        return self.reading.small(self.images.pixels(index, shrink / SHARPER), kept, name)

    def central(self, index: int) -> Pixels:
        """The image without randomness, uint8 [C, S, S]."""
        return self.reading.pixels(self.images.read(index), self.images.name(index))


@dataclass(frozen=True)
class Kept:
    """What is kept of some images: what crops are cut from, and central squares.

    Attributes:
        crops, centrals: the images themselves.
        slots: for `crops` and `centrals` the place of each image by its position in the image set.
        where: a sentence for the user.
    """

    crops: KeptImages
    centrals: KeptImages
    slots: tuple[Mapping[int, int], Mapping[int, int]]
    where: str

    def of(self, augment: bool) -> tuple[KeptImages, Mapping[int, int]]:
        """The images that a batch is made of, and their places."""
        return (self.crops, self.slots[0]) if augment else (self.centrals, self.slots[1])


class KeptSplit(StreamedSplit):
    """Images that worker processes decode when a batch first needs them.

    Args:
        streamed: the same split, decoded for each batch.
        reader: reads what is kept.
        kept: shared by the splits of an image set.
    """

    def __init__(self, streamed: StreamedSplit, reader: KeptReader, kept: Kept) -> None:
        super().__init__(streamed.images, streamed.crop, streamed.indices, streamed.device, streamed.workers)
        self.reader, self.kept = reader, kept
        crop = streamed.crop
        self._random = RandomResizedCrop(crop.reading.image_size, crop.seed, crop.stage)

    @override
    def batches(self, plan: Plan, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        crop_kernel()  # loads it once, and not in every worker
        store, slots = self.kept.of(augment)
        indices = [self.indices[positions].tolist() for _, positions in plan]
        jobs = [list(self._pieces(job, augment)) for job in _jobs(indices, store, slots)]
        pieces = [piece for job in jobs for piece in job]
        decoder = _Decoded(self.reader, augment)
        loader: DataLoader[Any] = DataLoader(
            decoder,
            batch_size=None,
            sampler=pieces,
            num_workers=self.workers,
            timeout=patience(max(map(len, pieces), default=0)) if self.workers else 0,
            generator=torch.Generator().manual_seed(0),
        )
        decoded: Any = None

        def fresh(job: list[list[int]]) -> Iterator[tuple[int, Pixels]]:
            nonlocal decoded
            for piece in job:
                if not self.workers:
                    # One by one: a decoder's memory serves the next image, and none is copied on its way.
                    for index in piece:
                        (pixels,) = decoder.read([index])
                        yield index, pixels
                    continue
                with worker_faults():
                    decoded = iter(loader) if decoded is None else decoded
                    found = next(decoded)
                if isinstance(found, MapolicyError):
                    raise found
                yield from zip(piece, _unpack(*found), strict=True)

        try:
            for (step, positions), batch, job in zip(plan, indices, jobs, strict=True):
                images = torch.from_numpy(self._batch(batch, step, augment, fresh(job)))
                if self.device.type == "cuda":
                    images = images.pin_memory()
                yield images.to(self.device, non_blocking=True), self.labels[positions].to(self.device)
        finally:
            getattr(decoded, "_shutdown_workers", lambda: None)()

    def _pieces(self, job: Sequence[int], augment: bool) -> Iterator[list[int]]:
        """The job in parts of up to `PIECE` bytes."""
        reading, piece, full = self.crop.reading, list[int](), 0
        for index in job:
            width, height = self.reader.size(index) if augment else (reading.image_size,) * 2
            space = width * height * reading.channels
            if piece and full + space > PIECE:
                yield piece
                piece, full = [], 0
            piece.append(index)
            full += space
        if piece:
            yield piece

    def _batch(self, indices: Sequence[int], step: int, augment: bool, fresh: Iterable[tuple[int, Pixels]]) -> Pixels:
        """One batch, uint8 [b, C, S, S].

        Args:
            indices: of its images.
            step: the iteration.
            augment: whether to crop at random.
            fresh: images that were decoded for it, which it keeps where it can.
        """
        store, slots = self.kept.of(augment)
        size = self.crop.reading.image_size
        result = np.empty((len(indices), self.crop.reading.channels, size, size), np.uint8)
        rows: dict[int, list[int]] = {}
        for row, index in enumerate(indices):
            rows.setdefault(index, []).append(row)

        def take(index: int, pixels: Pixels) -> None:
            """Keep an image, or else make its rows at once: whole photos of a batch can be gigabytes."""
            if not (index in slots and store.put(slots[index], pixels)):
                one = self._crop(pixels.reshape(-1), [0], [self._sides(pixels)], [index], step) if augment else pixels
                result[rows.pop(index)] = one

        for index, pixels in fresh:
            take(index, pixels)
        for index in list(rows):
            if not (index in slots and store.has(slots[index])):
                # Its file was damaged, or it comes twice in an epoch and cannot be kept.
                with bombs_as_errors():
                    take(index, self.reader.for_crops(index) if augment else self.reader.central(index))
        if augment and rows:
            places = [slots[index] for index in rows]
            crops = self._crop(store.pixels, store.starts[places], store.shapes[places], list(rows), step)
            if len(rows) == len(indices):
                return crops
            for crop, some in zip(crops, rows.values(), strict=True):
                result[some] = crop
        elif rows:
            for index, some in rows.items():
                result[some] = store.image(slots[index])
        return result

    def _crop(self, pixels: Pixels, starts: Any, shapes: Any, indices: Sequence[int], step: int) -> Pixels:
        """Random crops of images in one array, uint8 [b, C, S, S]; other arguments as for `crop_flat`."""
        shapes, size = np.array(shapes, np.int64).reshape(-1, 2), self.crop.reading.image_size
        kept: list[Size] = [(width, height) for height, width in shapes.tolist()]

        def boxes(first: int, last: int) -> NDArray[np.float32]:
            return self._boxes(indices[first:last], step, kept[first:last])

        result: Pixels = np.empty((len(indices), self.crop.reading.channels, size, size), np.uint8)
        whole = self.reader.whole
        crop_flat(pixels, np.array(starts, np.int64), shapes, boxes, result, interleaved=whole, cut=whole)
        return result

    def _sides(self, pixels: Pixels) -> tuple[int, ...]:
        """Height and width of an image as it is kept for crops."""
        return pixels.shape[:2] if self.reader.whole else pixels.shape[1:]

    def _boxes(self, indices: Sequence[int], step: int, kept: Sequence[Size]) -> NDArray[np.float32]:
        """The boxes in the pixels of the kept images, drawn in those of the files."""
        if self.reader.whole:
            return np.array(self._random.boxes(indices, step, kept), np.float32).reshape(-1, 4)
        drawn = []
        for index, (width, height) in zip(indices, kept, strict=True):
            own = self.reader.sizes[index]
            if (own[0] - own[1]) * (width - height) < 0:
                own = own[1], own[0]
            drawn.append(self.crop.reading.whole_size(*own))
        boxes: NDArray[np.float32] = scaled_boxes(self._random.boxes(indices, step, drawn), drawn, kept).numpy()
        return boxes

    @override
    def merge(self, other: "StreamedSplit") -> "KeptSplit":
        (indices,) = merge_columns((self.indices,), (other.indices,))
        streamed = StreamedSplit(self.images, self.crop, indices, self.device, self.workers)
        return KeptSplit(streamed, self.reader, self.kept)


class _Decoded(Dataset[Any]):
    """Item [indices] is their pixels, one after the other, and shapes; or the error of a corrupt image."""

    def __init__(self, reader: KeptReader, augment: bool) -> None:
        self.reader, self.augment = reader, augment

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, list[tuple[int, ...]]] | MapolicyError:
        try:
            found = self.read(indices)
        except MapolicyError as problem:
            return problem
        return torch.from_numpy(np.concatenate([each.reshape(-1) for each in found])), [each.shape for each in found]

    def read(self, indices: list[int]) -> list[Pixels]:
        """The images as they are kept."""
        read = self.reader.for_crops if self.augment else self.reader.central
        with bombs_as_errors():
            return [read(index) for index in indices]


def _unpack(pixels: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Pixels]:
    flat, ends = pixels.numpy(), np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [flat[end - np.prod(shape) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True)]


def _jobs(batches: Sequence[Sequence[int]], store: KeptImages, slots: Mapping[int, int]) -> list[list[int]]:
    """For each batch the images that workers decode for it: those that are not kept, once if they will be."""
    there, keeps = store.expected(), len(store.pixels) > 0
    taken: set[int] = set()
    jobs = []
    for batch in batches:
        job = [
            index
            for index in dict.fromkeys(batch)
            if not (index in slots and there[slots[index]]) and index not in taken
        ]
        if keeps:
            taken.update(index for index in job if index in slots)
        jobs.append(job)
    return jobs
