"""Batches from kept images: decoded once by workers, while the first epoch trains, and cropped in batches from then on.

Where an image is kept does not change a batch: one that could not be kept is decoded anew.
"""

import math
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ..config.choices import MEMORY, SMALL, WHOLE
from ..errors import MapolicyError
from ..runtime.words import plural_are, size_in_words
from ..transforms.random_resized_crop import RandomResizedCrop, crop_flat, scaled_boxes
from .batch_sampler import Plan
from .decode import CorruptImageError, bombs_as_errors, simplejpeg_version
from .image_dataset import ImageSet
from .kept_images import KeptImages, Owner, cache_folder, open_file
from .loader import Split, SplitLoader, StreamedSplit, merge_columns, patience, threaded_map, worker_faults
from .reading import ImageReading, Size
from .survey import Survey

Pixels = NDArray[np.uint8]

SHARPER = 1.25  # for a smaller copy a file is decoded at no less than so many times the copy's size
SPARED = 0.5  # of a disk's free bytes: the start suggests files up to this share
PIECE = 2**24  # bytes of decoded images that a worker hands over at once, or a single image


_WITHOUT_FILES = ContextVar("without_files", default=False)


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
        from ..transforms import crop_kernels  # noqa: F401 - once, and not in every worker

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


@dataclass(frozen=True)
class KeptLoader(SplitLoader):
    """Loads splits whose random resized crops are cut from kept images.

    Args:
        keep_images, cache_dir: the settings.
        owner: the data set, for `clear`.
        dataset: as the user typed it.
        fingerprint: of the images.
    """

    keep_images: str
    cache_dir: str
    owner: Owner
    dataset: str
    fingerprint: str

    def keep(
        self, images: ImageSet, groups: Sequence[Tensor], sizes: Mapping[int, Size] | None = None
    ) -> tuple[list[Split], str]:
        """Splits of one image set that share what is kept, and a sentence on where.

        Args:
            images: the image set.
            groups: for each split its indices, as for `load`; only of the first one nothing but crops is kept.
            sizes: width and height of images whose headers have been read.
        """
        used, held_out = (sorted(index for group in some for index in group.tolist()) for some in (groups, groups[1:]))
        known = dict(sizes or {})
        rest = [index for index in used if index not in known]
        known |= zip(rest, _sizes(images, rest), strict=True)
        reader = KeptReader(images, self.crop.reading, known, self.keep_images != SMALL)
        kept = self._open(reader, used, held_out)
        streams = [StreamedSplit(images, self.crop, group, self.device, self.workers) for group in groups]
        return [KeptSplit(each, reader, kept) for each in streams], kept.where

    def _open(self, reader: KeptReader, used: Sequence[int], held_out: Sequence[int]) -> Kept:
        reading = self.crop.reading
        crops = KeptImages([reader.size(index)[::-1] for index in used], reading.channels, reader.whole)
        centrals = KeptImages([(reading.image_size, reading.image_size)] * len(held_out), reading.channels)
        slots = ({index: slot for slot, index in enumerate(used)}, {index: slot for slot, index in enumerate(held_out)})
        space = size_in_words(crops.size + centrals.size)
        sizes = f"{plural_are(len(used), 'image')} kept for random resized crops (keep_images): {space}"
        anew = "images are not kept but decoded anew in each epoch"
        fits = crops.size + centrals.size <= self.memory_limit_gib * 2**30
        if not fits and self.keep_images == MEMORY:
            return Kept(crops, centrals, slots, f"{anew}: they take {space}, more than memory_limit_gib")
        folder = cache_folder(self.cache_dir)
        at = f" --set cache_dir={shlex.quote(self.cache_dir)}" if self.cache_dir else ""
        why = f"more than memory_limit_gib = {self.memory_limit_gib:g}"
        remove = f"`mapolicy data {shlex.quote(self.dataset)} --clear-cache{at}` removes them"
        in_file = f"{sizes}, {why}, so in {folder}; {remove}"
        if fits or _WITHOUT_FILES.get():
            try:
                return Kept(crops.allocate(), centrals.allocate(), slots, f"{sizes} in memory" if fits else in_file)
            except MemoryError:
                return Kept(crops, centrals, slots, f"{anew}: {space} of memory are not to be had")
        try:
            free = _free(folder)
            key = {"fingerprint": self.fingerprint, "reading": reading.to_dict(), "libraries": _libraries()}
            what = {"what": WHOLE, "reading": _without_size(reading)} if reader.whole else {"what": "crops"}
            wide = open_file(folder, self.owner, key | what, crops.shapes, reading.channels, reader.whole)
            square = open_file(folder, self.owner, key | {"what": "centrals"}, centrals.shapes, reading.channels)
            missing = sum(int(each.sizes[~each.expected()].sum()) for each in (wide, square))
            if missing > free:
                raise OSError(f"{size_in_words(missing)} are needed and {size_in_words(free)} are free")
        except OSError as problem:
            return Kept(crops, centrals, slots, f"{anew}: {folder}: {problem.strerror or problem}")
        return Kept(wide, square, slots, in_file)


@contextmanager
def without_files() -> Iterator[None]:
    """Inside the block images that would be kept in a file are kept in memory: for a forecast, which needs few."""
    token = _WITHOUT_FILES.set(True)
    try:
        yield
    finally:
        _WITHOUT_FILES.reset(token)


def seem_to_fit(reading: ImageReading, found: Survey, memory_limit_gib: float) -> bool:
    """Whether the whole images would be kept in memory, by those whose headers have been read."""
    return _gib(reading.whole_size, reading, found) <= memory_limit_gib


def keeping_hint(reading: ImageReading, found: Survey, memory_limit_gib: float, cache_dir: str) -> list[str]:
    """A sentence for a run whose whole images do not fit in memory, so that each is decoded for each of its crops."""
    room = memory_limit_gib
    with suppress(OSError):
        room = max(room, _free(cache_folder(cache_dir)) / 2**30 * SPARED)
    for value, kept_size, which in (
        (WHOLE, reading.whole_size, "the crops stay the same"),
        (
            SMALL,
            reading.small_size,
            "the copies have fewer pixels, which cost 4.7 points of accuracy in a measurement",
        ),
    ):
        gib = _gib(kept_size, reading, found)
        if gib <= room:
            place = "in memory" if gib <= memory_limit_gib else "in a file"
            return [
                "every image is decoded anew for every random resized crop, since all together exceed "
                f"memory_limit_gib: --set keep_images={value} decodes each once, and keeps about "
                f"{size_in_words(round(gib * 2**30))} {place}; {which}"
            ]
    return []


def _gib(kept_size: Callable[[int, int], Size], reading: ImageReading, found: Survey) -> float:
    """About how much all images take at that size; infinitely much where no header could be read."""
    known = [size for size in found.sizes.values() if min(size)]
    pixels = sum(math.prod(kept_size(*size)) for size in known) / len(known) if known else math.inf
    return found.total * reading.channels * pixels / 2**30


def _free(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())).free


def _without_size(reading: ImageReading) -> dict[str, Any]:
    """What whole images depend on: runs of other sizes share them."""
    return {name: value for name, value in reading.to_dict().items() if name not in ("image_size", "share")}


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


def _sizes(images: ImageSet, indices: Sequence[int]) -> list[Size]:
    def size(index: int) -> Size:
        try:
            header = images.header(index)
        except CorruptImageError:
            return 0, 0
        return header.width, header.height

    with bombs_as_errors():
        return threaded_map(indices, size)


def _libraries() -> dict[str, str]:
    """What decodes: another version may decode to other pixels."""
    import PIL
    from PIL import features

    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return {"pillow": PIL.__version__, "jpeg": str(jpeg), "simplejpeg": simplejpeg_version()}
