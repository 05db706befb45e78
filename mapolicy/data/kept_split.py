"""Batches from kept images: decoded once by workers, while the first epoch trains, and cropped in batches from then on.

What is kept, and where, does not change a batch: an image that could not be kept is decoded and made smaller anew.
"""

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ..errors import MapolicyError
from ..transforms.random_resized_crop import RandomResizedCrop, resize_flat, scaled_boxes
from .batch_sampler import Plan
from .decode import CorruptImageError, bombs_as_errors
from .image_dataset import ImageSet
from .kept_images import KeptImages, Owner, cache_folder, open_file
from .loader import Split, SplitLoader, StreamedSplit, merge_columns, patience, threaded_map, worker_faults
from .reading import ImageReading
from .survey import Survey

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # width, height

SHARPER = 1.25  # an image file is decoded at no less than so many times the kept size


@dataclass(frozen=True)
class KeptReader:
    """Reads images as they are kept.

    Attributes:
        images: the image set.
        reading: how its images are read.
        sizes: by position in the image set, width and height as the header says; (0, 0) for an unreadable one.
    """

    images: ImageSet
    reading: ImageReading
    sizes: Mapping[int, Size]

    def for_crops(self, index: int) -> Pixels:
        """The image at its kept size, uint8 [C, height, width]."""
        name, own = self.images.name(index), self.sizes[index]
        if min(own) == 0:
            return self.reading.kept(self.images.read(index), own, name)  # says what is wrong with it
        _, kept = self.reading.kept_size(*own)
        shrink = min(own) / min(kept) if self.reading.resize == "crop" else max(own) / max(kept)
        return self.reading.kept(self.images.read_small(index, shrink / SHARPER), kept, name)

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
        jobs = _jobs(indices, store, slots)
        loader: DataLoader[Any] = DataLoader(
            _Decoded(self.reader, augment),
            batch_size=None,
            sampler=[job for job in jobs if job],
            num_workers=self.workers,
            timeout=patience(max(map(len, jobs), default=0)) if self.workers else 0,
            generator=torch.Generator().manual_seed(0),
        )
        decoded: Any = None
        try:
            for (step, positions), batch, job in zip(plan, indices, jobs, strict=True):
                fresh: dict[int, Pixels] = {}
                if job:
                    with worker_faults():
                        decoded = iter(loader) if decoded is None else decoded
                        found = next(decoded)
                    if isinstance(found, MapolicyError):
                        raise found
                    fresh = dict(zip(job, _unpack(*found), strict=True))
                images = torch.from_numpy(self._batch(batch, step, augment, fresh))
                if self.device.type == "cuda":
                    images = images.pin_memory()
                yield images.to(self.device, non_blocking=True), self.labels[positions].to(self.device)
        finally:
            getattr(decoded, "_shutdown_workers", lambda: None)()

    def _batch(self, indices: Sequence[int], step: int, augment: bool, fresh: dict[int, Pixels]) -> Pixels:
        """One batch, uint8 [b, C, S, S]; keeps what was decoded for it."""
        store, slots = self.kept.of(augment)
        for index, pixels in fresh.items():
            if index in slots:
                store.put(slots[index], pixels)
        size = self.crop.reading.image_size
        result = np.empty((len(indices), self.crop.reading.channels, size, size), np.uint8)
        there = np.array([index in slots and store.has(slots[index]) for index in indices], bool)
        for row in np.flatnonzero(~there).tolist():
            index = indices[row]
            if index not in fresh:  # its file was damaged, or it comes twice in an epoch and cannot be kept
                with bombs_as_errors():
                    fresh[index] = self.reader.for_crops(index) if augment else self.reader.central(index)
                if index in slots and store.put(slots[index], fresh[index]):
                    there[[other == index for other in indices]] = True
        places = np.array([slots.get(index, -1) for index in indices], np.int64)
        if not augment:
            for row, index in enumerate(indices):
                result[row] = store.image(int(places[row])) if there[row] else fresh[index]
            return result
        shapes = np.array([fresh[index].shape[1:] if index in fresh else (0, 0) for index in indices])
        shapes[there] = store.shapes[places[there]]
        boxes = self._boxes(indices, step, [(int(width), int(height)) for height, width in shapes])
        if there.all():
            resize_flat(store.pixels, store.starts[places], shapes, boxes, result)
            return result
        for row, index in enumerate(indices):
            one = slice(row, row + 1)
            if there[row]:
                resize_flat(store.pixels, store.starts[places[one]], shapes[one], boxes[one], result[one])
            else:
                pixels = np.ascontiguousarray(fresh[index]).reshape(-1)
                resize_flat(pixels, np.zeros(1, np.int64), shapes[one], boxes[one], result[one])
        return result

    def _boxes(self, indices: Sequence[int], step: int, kept: Sequence[Size]) -> NDArray[np.float32]:
        """The boxes in the pixels of the kept images, drawn in those of the files."""
        drawn = []
        for index, (width, height) in zip(indices, kept, strict=True):
            own = self.reader.sizes[index]
            if (own[0] - own[1]) * (width - height) < 0:
                own = own[1], own[0]
            drawn.append(self.crop.reading.kept_size(*own)[0])
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
        cache_dir: the setting.
        owner: the data set, for `clear`.
        dataset: as the user typed it.
        fingerprint: of the images.
    """

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
        reader = KeptReader(images, self.crop.reading, known | dict(zip(rest, _sizes(images, rest), strict=True)))
        kept = self._open(reader, used, held_out)
        streams = [StreamedSplit(images, self.crop, group, self.device, self.workers) for group in groups]
        return [KeptSplit(each, reader, kept) for each in streams], kept.where

    def _open(self, reader: KeptReader, used: Sequence[int], held_out: Sequence[int]) -> Kept:
        reading = self.crop.reading
        shapes = []
        for index in used:
            width, height = reading.kept_size(*reader.sizes[index])[1] if min(reader.sizes[index]) else (0, 0)
            shapes.append((height, width))
        crops = KeptImages(shapes, reading.channels)
        centrals = KeptImages([(reading.image_size, reading.image_size)] * len(held_out), reading.channels)
        slots = ({index: slot for slot, index in enumerate(used)}, {index: slot for slot, index in enumerate(held_out)})
        gib = (crops.size + centrals.size) / 2**30
        sizes = f"{len(used)} images are kept for random resized crops (keep_images): {gib:.2f} GiB"
        if gib <= self.memory_limit_gib:
            return Kept(crops.allocate(), centrals.allocate(), slots, f"{sizes} in memory")
        folder = cache_folder(self.cache_dir)
        try:
            free = shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())).free
            key = {"fingerprint": self.fingerprint, "reading": reading.to_dict(), "libraries": _libraries()}
            wide = open_file(folder, self.owner, key | {"what": "crops"}, crops.shapes, reading.channels)
            square = open_file(folder, self.owner, key | {"what": "centrals"}, centrals.shapes, reading.channels)
            missing = sum(int(each.sizes[~each.expected()].sum()) for each in (wide, square))
            if missing > free:
                raise OSError(f"{missing / 2**30:.2f} GiB are needed and {free / 2**30:.2f} GiB are free")
        except OSError as problem:
            where = f"images are not kept but decoded anew in each epoch: {folder}: {problem.strerror or problem}"
            return Kept(crops, centrals, slots, where)
        why = f"more than memory_limit_gib = {self.memory_limit_gib:g}"
        at = f" --set cache_dir={shlex.quote(self.cache_dir)}" if self.cache_dir else ""
        remove = f"`mapolicy data {shlex.quote(self.dataset)} --clear-cache{at}` removes them"
        return Kept(wide, square, slots, f"{sizes}, {why}, so in {folder}; {remove}")


def keeping_hint(reading: ImageReading, found: Survey) -> list[str]:
    """A sentence for a run that decodes each image for each of its crops, and could keep it."""
    if reading.interpolation != "bilinear" or not min(found.width, found.height):
        return []
    (width, height) = reading.kept_size(found.width, found.height)[1]
    gib = found.total * reading.channels * width * height / 2**30
    return [
        "every image is decoded anew for every random resized crop: --set keep_images=true decodes each once, and "
        f"keeps about {gib:.2g} GiB; the copies have fewer pixels, which can cost accuracy"
    ]


class _Decoded(Dataset[Any]):
    """Item [indices] is their pixels, one after the other, and shapes; or the error of a corrupt image."""

    def __init__(self, reader: KeptReader, augment: bool) -> None:
        self.reader, self.augment = reader, augment

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, list[tuple[int, ...]]] | MapolicyError:
        read = self.reader.for_crops if self.augment else self.reader.central
        try:
            with bombs_as_errors():
                found = [read(index) for index in indices]
        except MapolicyError as problem:
            return problem
        return torch.from_numpy(np.concatenate([each.reshape(-1) for each in found])), [each.shape for each in found]


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
    return {"pillow": PIL.__version__, "jpeg": str(jpeg)}
