"""Decoded images that a run keeps: in memory, or in a file that several processes share and later runs find again.

A file has a header (its key), a table (for each image height, width, CRC-32, 1), and the pixels. Images come in any
order and from any process. An image counts once its entry is there and its CRC-32 is right, so a process that is killed
while it writes, or a disk that loses a block, costs one image. Equal keys give equal pixels, so two processes that
write the same image write the same bytes.
"""

import hashlib
import json
import mmap
import os
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ..runtime.files import remove_litter
from ..runtime.lock import PAUSE, try_lock

FORMAT = "mapolicy kept images 2"
PAGE = 4096
ENDING = ".images"
LOCK = "lock"
CACHE = "kept-images"  # folder below the cache

Pixels = NDArray[np.uint8]
Shapes = Sequence[tuple[int, int]] | NDArray[np.int64]  # height, width of each


class KeptImages:
    """Some images, each at a place of its own; this class keeps them in memory.

    Args:
        shapes: height and width of each.
        channels: of all.
        interleaved: whether an image is [height, width, C], as decoders write it, else [C, height, width].

    Attributes:
        pixels: uint8 [N], all images.
        starts: int64 [images], where each begins.
        shapes: int64 [images, 2], height and width of each; turned for one whose header has the sides exchanged.
    """

    def __init__(self, shapes: Shapes, channels: int, interleaved: bool = False) -> None:
        self.interleaved = interleaved
        self.shapes = np.array(shapes, np.int64).reshape(-1, 2)
        self.channels = channels
        self.sizes = self.shapes.prod(1) * channels
        self.starts = self.sizes.cumsum() - self.sizes
        self.pixels: Pixels = np.empty(0, np.uint8)
        self._whole = np.zeros(len(self.shapes), bool)

    @property
    def size(self) -> int:
        """Bytes of all images."""
        return int(self.sizes.sum())

    def allocate(self) -> "KeptImages":
        """Get the memory, which the system gives page by page as it is used."""
        self.pixels = np.empty(self.size, np.uint8)
        return self

    def has(self, slot: int) -> bool:
        """Whether the image is there, undamaged."""
        return bool(self._whole[slot])

    def expected(self) -> NDArray[np.bool_]:
        """Which images seem to be there: `has` without a look at their pixels."""
        return self._whole.copy()

    def image(self, slot: int) -> Pixels:
        """An image that is there, uint8, as it was put."""
        start, (height, width) = self.starts[slot], self.shapes[slot]
        shape = (height, width, self.channels) if self.interleaved else (self.channels, height, width)
        return self.pixels[start : start + self.sizes[slot]].reshape(shape)

    def put(self, slot: int, image: Pixels) -> bool:
        """Keep an image; false where it has not its place's size, or there is no room."""
        shape = self._sides(image)
        if self._whole[slot] or (image.size != self.sizes[slot]) or sorted(shape) != sorted(self.shapes[slot]):
            return bool(self._whole[slot])
        if not self._write(slot, np.ascontiguousarray(image)):
            return False
        self.shapes[slot] = shape
        self._whole[slot] = True
        return True

    def _sides(self, image: Pixels) -> tuple[int, ...]:
        return image.shape[:2] if self.interleaved else image.shape[1:]

    def _write(self, slot: int, image: Pixels) -> bool:
        if not len(self.pixels):
            return False
        self.pixels[self.starts[slot] : self.starts[slot] + image.size] = image.reshape(-1)
        return True


class KeptFile(KeptImages):
    """The same in a file.

    Args:
        path: the file; `open_file` makes sure that it is whole.
        descriptor: of the file, open for reading and writing.
        shapes, channels, interleaved: of the images.
    """

    def __init__(self, path: Path, descriptor: int, shapes: Shapes, channels: int, interleaved: bool = False) -> None:
        super().__init__(shapes, channels, interleaved)
        self.path, self._descriptor = path, descriptor
        begin = _pages(PAGE + 16 * len(self.shapes))
        self.starts = self.starts + begin
        # Read through a map, written by `pwrite`: on a full disk a write through the map would end the process.
        self.pixels = np.frombuffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), np.uint8)
        self._table = self.pixels[PAGE : PAGE + 16 * len(self.shapes)].view("<u4").reshape(-1, 4)
        self._full = False

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._descriptor)

    @override
    def has(self, slot: int) -> bool:
        if not self._whole[slot]:
            height, width, digest, there = (int(number) for number in self._table[slot])
            if there != 1 or sorted((height, width)) != sorted(self.shapes[slot].tolist()):
                return False
            start = self.starts[slot]
            if digest != _digest(self.pixels[start : start + self.sizes[slot]], height, width):
                return False
            self.shapes[slot] = height, width
            self._whole[slot] = True
        return True

    @override
    def expected(self) -> NDArray[np.bool_]:
        return np.asarray(self._table[:, 3] == 1)

    def _write(self, slot: int, image: Pixels) -> bool:
        if self._full:
            return False
        height, width = self._sides(image)
        entry = np.array([height, width, _digest(image.reshape(-1), height, width), 1], "<u4").tobytes()
        try:
            _write_all(self._descriptor, memoryview(image.tobytes()), int(self.starts[slot]))
            _write_all(self._descriptor, memoryview(entry), PAGE + 16 * slot)
        except OSError:
            self._full = True  # the run goes on and decodes the others anew
            return False
        return True


@dataclass(frozen=True)
class Owner:
    """Whose images a file has.

    Attributes:
        dataset: name of the data set.
        where: its folder or name.
    """

    dataset: str
    where: str


def cache_folder(cache_dir: str) -> Path:
    """The folder of the files: below `cache_dir`, or else below the user's cache."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mapolicy"
    return (Path(cache_dir) if cache_dir else users).expanduser().absolute() / CACHE


def open_file(
    folder: Path, owner: Owner, key: Mapping[str, Any], shapes: Shapes, channels: int, interleaved: bool = False
) -> KeptFile:
    """Open the file of this key, which is made where it is missing, of another key or cut short.

    Args:
        folder: of all such files; created where it is missing.
        owner: recorded, so that `clear` finds the file.
        key: what the pixels depend on, as plain values.
        shapes, channels, interleaved: of the images.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    shapes = np.array(shapes, np.int64).reshape(-1, 2)
    sides = zlib.crc32(shapes.astype("<i8").tobytes())
    layout = {"channels": channels, "interleaved": interleaved, "images": len(shapes), "shapes": sides}
    facts = {"format": FORMAT, **vars(owner), "key": dict(key), **layout}
    header = json.dumps(facts, sort_keys=True).encode().ljust(PAGE, b" ")
    if len(header) > PAGE:
        raise OSError(f"a header of {len(header)} bytes is too long")
    length = _pages(PAGE + 16 * len(shapes)) + int(shapes.prod(1).sum()) * channels
    path = folder / f"{_name(header)}{ENDING}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder):
        descriptor = _open_whole(path, header, length)
        if descriptor is None:
            remove_litter(folder)
            _make(path, header, length)
            descriptor = _open_whole(path, header, length)
    if descriptor is None:
        raise OSError(f"{path} changed while it was opened")
    return KeptFile(path, descriptor, shapes, channels, interleaved)


def clear(folder: Path, owner: Owner) -> tuple[int, int]:
    """Remove a data set's files; runs that have one open go on with it.

    Returns:
        Number of files, and bytes on the disk.
    """
    files = space = 0
    if not folder.is_dir():
        return 0, 0
    with _locked(folder):
        for path in sorted(folder.glob(f"*{ENDING}")):
            facts = _facts(path)
            if facts.get("dataset") == owner.dataset and facts.get("where") == owner.where:
                space += path.stat().st_blocks * 512
                files += 1
                path.unlink()
    return files, space


def _facts(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(PAGE))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _name(header: bytes) -> str:
    return hashlib.sha256(header).hexdigest()[:32]


def _open_whole(path: Path, header: bytes, length: int) -> int | None:
    """The open file; None where it is missing or not what it should be."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size == length and os.pread(descriptor, PAGE, 0) == header:
        return descriptor
    os.close(descriptor)
    return None


def _make(path: Path, header: bytes, length: int) -> None:
    """A file without images, whole at once under its name; it takes space as it is filled."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try_lock(descriptor)
        os.ftruncate(descriptor, length)
        os.pwrite(descriptor, header, 0)
        os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Inside the block no other process makes or removes a file; the lock ends with its process."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while not try_lock(descriptor):
            time.sleep(PAUSE)
        yield
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: memoryview, place: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, place)
        content, place = content[written:], place + written


def _digest(pixels: Pixels, height: int, width: int) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels).data, (height * 65537 + width) & 0xFFFFFFFF)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
