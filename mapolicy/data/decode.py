"""Decode one image file: formats, limits, orientation. `reading.py` makes a network's input of it.

Only formats that Pillow decodes by itself are read. PostScript is not: Pillow would start Ghostscript on the file.
"""

import io
import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError
from ..runtime.files import read_regular_file
from ..runtime.sanitize import printable

try:
    import simplejpeg
except ImportError:  # no wheel for this machine: Pillow decodes to the same pixels, and takes a third longer
    simplejpeg = None

LARGEST_FILE = 2**28  # bytes; far more than an image of a classification data set has
COMMON_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")  # tried first
# PostScript needs another program, and the others need plug-ins of Pillow's that are not there.
NOT_DECODED = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
ORIENTATION = 0x0112  # EXIF tag
JPEG_START, JPEG_APP1, JPEG_SCAN = b"\xff\xd8", b"\xe1", b"\xda"  # the beginning; kinds of segments
EXIF = b"Exif\0\0"
TURBOJPEG_KINDS = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}  # what is decoded, by a file's own colours

Image.init()
FORMATS = (*COMMON_FORMATS, *(name for name in Image.ID if name not in {*COMMON_FORMATS, *NOT_DECODED}))
_ENDINGS = Image.registered_extensions().items()
EXTENSIONS = frozenset(ending for ending, name in _ENDINGS if name in (*FORMATS, "MPO"))  # MPO is JPEG's

GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
WIDE_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})  # more than eight bits a pixel
ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


def simplejpeg_version() -> str:
    """Version of the JPEG decoder beside Pillow's; empty where there is none."""
    return "" if simplejpeg is None else str(simplejpeg.__version__)


class CorruptImageError(InputError):
    """An image that cannot be decoded; the setting `skip_corrupt` leaves it out."""


def corrupt(name: str, why: str) -> CorruptImageError:
    """The error for one corrupt image; `name` and `why` may hold any characters."""
    return CorruptImageError(printable(name), printable(why)[:100], "mend or remove it, or use --skip-corrupt")


@contextmanager
def bombs_as_errors() -> Iterator[None]:
    """Inside the block Pillow's warning about a decompression bomb is an error.

    Warning filters belong to the whole process, so put this around a loop over images, not around each image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_file(path: str) -> bytes:
    """The bytes of an image file.

    Raises:
        CorruptImageError: the file is missing, not regular, or larger than `LARGEST_FILE`.
    """
    try:
        return read_regular_file(Path(path), LARGEST_FILE)
    except InputError as problem:
        raise corrupt(path, problem.why) from None


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before it is decoded.

    Attributes:
        width, height: in pixels, as the image is seen: with its orientation applied.
        mode: Pillow's name of the kind of pixels, such as `RGB` or `I;16`.
        format: Pillow's name of the file's format, such as `JPEG`; empty for an image without a file.
        alpha: whether pixels can be transparent.
        turned: whether the file is stored in another orientation than it is seen in.
        animated: whether it has several frames; the first one is read.
    """

    width: int
    height: int
    mode: str
    format: str = ""
    alpha: bool = False
    turned: bool = False
    animated: bool = False

    @property
    def gray(self) -> bool:
        """Whether the image has one channel, besides alpha."""
        return self.mode in GRAY_MODES

    @property
    def wide(self) -> bool:
        """Whether a pixel has more than eight bits, so that the range of its values is not known from the file."""
        return self.mode in WIDE_MODES

    @classmethod
    def of(cls, image: Image.Image) -> "Header":
        """The header of an image that Pillow has opened; its pixels are not decoded."""
        width, height = image.size
        # Pillow turns a TIFF's size by itself; a PNG's EXIF after its pixels is found when it is decoded.
        found: int = 1
        if "exif" in image.info:
            with suppress(Exception):  # Pillow's EXIF reader raises exceptions of many kinds
                found = image.getexif().get(ORIENTATION, 1)
        across = found in (5, 6, 7, 8) and image.format != "TIFF"
        return cls(
            width=height if across else width,
            height=width if across else height,
            mode=image.mode,
            format=image.format or "",
            alpha=has_alpha(image),
            turned=found in range(2, 9),
            animated=bool(getattr(image, "is_animated", False)),
        )


def has_alpha(image: Image.Image) -> bool:
    """Whether pixels of the image can be transparent: by an alpha channel, or by a transparent colour."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def read_header(content: bytes, name: str) -> Header:
    """The header of an image file's content.

    Raises:
        CorruptImageError: it is empty, not an image, or a decompression bomb.
    """
    return Header.of(_open(io.BytesIO(content), len(content), name))


def read_file_header(path: str) -> Header:
    """The header of an image file, of which only the beginning is read.

    Raises:
        CorruptImageError: the file is missing, not regular, empty, not an image, or a decompression bomb.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))  # a FIFO does not hang
    except OSError as problem:
        raise corrupt(path, problem.strerror or "cannot be opened") from None
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise corrupt(path, "is not a regular file")
        return Header.of(_open(file, facts.st_size, path))


def decode(content: bytes, name: str, shrink: float = 1.0) -> Image.Image:
    """Decode the first frame of an image file, turned as its EXIF orientation says; its mode is the file's.

    Args:
        content: the file's bytes.
        name: the image's name, for an error.
        shrink: how many times smaller the image may be; a JPEG then leaves out what its decoder need not compute.

    Raises:
        CorruptImageError: the file is empty, truncated, not an image, or a decompression bomb.
    """
    image = _open(io.BytesIO(content), len(content), name)
    try:
        if shrink >= 2:
            image.draft(None, (math.ceil(image.width / shrink), math.ceil(image.height / shrink)))
        image.load()
    except MemoryError:
        raise
    except Exception as problem:  # Pillow's decoders raise exceptions of many kinds
        raise corrupt(name, f"cannot be decoded ({problem})") from None
    with suppress(Exception):  # an unreadable orientation is none
        if image.getexif().get(ORIENTATION, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def decode_pixels(content: bytes, name: str, shrink: float = 1.0) -> Image.Image | NDArray[np.uint8]:
    """`decode`, but for the pixels of an ordinary JPEG, which libjpeg-turbo writes where they are wanted.

    Args:
        content, name, shrink: as for `decode`.

    Returns:
        Of an upright JPEG in grey or YCbCr uint8 [H, W, 1 or 3], the pixels that `decode` finds; else Pillow's image.

    Raises:
        CorruptImageError: as `decode`.
    """
    found = _by_turbojpeg(content, shrink)
    return decode(content, name, shrink) if found is None else found


def _by_turbojpeg(content: bytes, shrink: float) -> NDArray[np.uint8] | None:
    """The pixels of an ordinary JPEG; None for a file that Pillow has to look at."""
    if simplejpeg is None or not content.startswith(JPEG_START) or _seems_turned(content):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        limit = Image.MAX_IMAGE_PIXELS
        if colours not in TURBOJPEG_KINDS or (limit is not None and height * width > limit):
            return None
        # Pillow's halvings; of other fractions of eight the decoder has no fast way.
        wanted = min(side // math.ceil(side / shrink) for side in (height, width)) if shrink >= 2 else 1
        halved = max(each for each in (1, 2, 4, 8) if each <= wanted)
        height, width = -(-height // halved), -(-width // halved)
        kind = TURBOJPEG_KINDS[colours]
        found: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, kind, min_height=height, min_width=width)
    except MemoryError:
        raise
    except Exception:  # of several kinds; Pillow may still read it, or says better what is wrong
        return None
    return found if found.shape[:2] == (height, width) else None


def _seems_turned(content: bytes) -> bool:
    """Whether a JPEG is stored in another orientation than it is seen in, or may be."""
    notes = _app1_segments(content)
    if notes is None:
        return True
    exif = [each for each in notes if each.startswith(EXIF)]
    with suppress(Exception):  # Pillow's EXIF reader raises exceptions of many kinds
        found = Image.Exif()
        if len(exif) == 1:
            found.load(exif[0])
        if len(exif) > 1 or (ORIENTATION not in found and len(notes) > len(exif)):  # XMP has orientations too
            found = Image.open(io.BytesIO(content), formats=("JPEG",)).getexif()
        return bool(found.get(ORIENTATION, 1) != 1)
    return True


def _app1_segments(content: bytes) -> list[bytes] | None:
    """What cameras and programs noted before a JPEG's pixels; None where its segments do not follow each other."""
    found, place = list[bytes](), len(JPEG_START)
    while content[place : place + 1] == b"\xff":
        kind, size = content[place + 1 : place + 2], int.from_bytes(content[place + 2 : place + 4], "big")
        if kind == JPEG_SCAN:
            return found
        if kind == JPEG_APP1:
            found.append(content[place + 4 : place + 2 + size])
        place += 2 + size
    return None


def _open(file: IO[bytes], size: int, name: str) -> Image.Image:
    if not size:
        raise corrupt(name, "is empty")
    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise corrupt(name, "has so many pixels that it may be a decompression bomb") from None
    except UnidentifiedImageError:
        raise corrupt(name, "is not an image that Pillow can read") from None
    except Exception as problem:  # as in `decode`
        raise corrupt(name, f"cannot be decoded ({problem})") from None
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise corrupt(name, "has so many pixels that it may be a decompression bomb")
    return image
