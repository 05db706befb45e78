"""Where images are kept for random resized crops: in memory, in a file, or nowhere; and what a run says of it."""

import math
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import RunConfig
from ..config.choices import MEMORY, SMALL, WHOLE
from ..runtime.files import plain_absolute
from ..runtime.sanitize import printable
from ..runtime.words import plural_are, size_in_words
from .dataset_factory import open_dataset
from .decode import CorruptImageError, bombs_as_errors, simplejpeg_version
from .image_dataset import ImageSet, Source
from .kept_images import KeptImages, Owner, cache_folder, open_file
from .kept_split import Kept, KeptReader, KeptSplit
from .loader import Split, SplitLoader, StreamedSplit, threaded_map
from .reading import ImageReading, Size
from .survey import Survey

SPARED = 0.5  # of a disk's free bytes: the start suggests files up to this share
_WITHOUT_FILES = ContextVar("without_files", default=False)


@dataclass(frozen=True)
class KeptLoader(SplitLoader):
    """Loads splits whose random resized crops are cut from kept images.

    Args:
        keep_images, cache_dir: the settings.
        owner: the data set, for `clear`.
        dataset: as the user types it for a shell, with options that say where it is.
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
        remove = f"`mapolicy data {self.dataset} --clear-cache{at}` removes them"
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


def read_groups(
    config: RunConfig,
    source: Source,
    loader: SplitLoader,
    found: Survey,
    groups: Sequence[Tensor],
    state: Callable[[], str],
) -> tuple[list[Split], list[str]]:
    """Splits of the groups of images, and what to say of where the images are kept.

    Args:
        config, source, loader: of the run.
        found: what the images are like.
        groups: for each split the indices of its images.
        state: makes a text that changes with any image.
    """
    reading, limit = loader.crop.reading, loader.memory_limit_gib
    if config.keeps_images and (config.keep_images != MEMORY or seem_to_fit(reading, found, limit)):
        place = (config.keep_images, config.cache_dir, owner_of(source), _as_typed(config), state())
        keeper = KeptLoader(loader.crop, loader.device, loader.workers, limit, *place)
        splits, said = keeper.keep(source.pool, groups, found.sizes)
        return splits, [said]
    splits, hint = loader.load(source.pool, groups), []
    if config.keep_images in (WHOLE, SMALL):
        cut = "only random resized crops with interpolation=bilinear are cut from kept images"
        hint = [f"keep_images={config.keep_images} does nothing here: {cut}"]
    elif config.keeps_images:
        hint = keeping_hint(reading, found, limit, config.cache_dir)
    return splits, hint


def owner_of(source: Source) -> Owner:
    """Whose a file of kept images is: the data set's name, and its folder as an absolute path."""
    place = Path(source.where).expanduser()
    return Owner(source.name, str(place.absolute()) if place.exists() else source.where)


def cache_owners(config: RunConfig) -> list[Owner]:
    """Whose the files of kept images of a configuration's data set are.

    A folder that is gone may have been here or in data_dir, so both are named.
    """
    text = config.dataset.removeprefix("folder:")
    places = [Path(text).expanduser(), *([Path(config.data_dir) / text] if Path(text).name == text else [])]
    if text == config.dataset or any(place.exists() for place in places):
        return [owner_of(open_dataset(config))]
    gone = [plain_absolute(place) for place in places]  # as `open_folder` makes the name
    return [Owner(f"folder:{printable(place.name)}", str(place)) for place in gone]


def _as_typed(config: RunConfig) -> str:
    """The data set as a user types it for a shell, with --data-dir where that is not the default."""
    where = "" if config.data_dir == RunConfig.defaults()["data_dir"] else f" --data-dir {shlex.quote(config.data_dir)}"
    return shlex.quote(config.dataset) + where


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
