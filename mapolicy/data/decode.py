"""Decode one image file and resize it to uint8 pixels at the network's input size.

Resizing uses Pillow's BILINEAR filter, which antialiases when it shrinks an image.
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import InputError
from ..runtime.files import read_regular_file
from ..runtime.random import generator
from ..runtime.sanitize import printable

LARGEST_FILE = 2**28  # bytes; far more than an image of a classification data set has
GRAY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N"})
CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # the defaults of torchvision.transforms.RandomResizedCrop
EVALUATION_SHARE = 224 / 256  # of the shorter side; for networks trained on random resized crops

Box = tuple[float, float, float, float]  # left, top, right, bottom in source pixels


class CorruptImageError(InputError):
    """An image that cannot be decoded; the setting `skip_corrupt` leaves it out."""


def corrupt(name: str, why: str) -> CorruptImageError:
    """The error for one corrupt image; `name` and `why` may hold any characters."""
    return CorruptImageError(printable(name), printable(why)[:100], "mend or remove it, or set skip_corrupt")


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


def is_gray(content: bytes, name: str) -> bool:
    """Whether an image file has one channel; only its header is read."""
    return _open(content, name).mode in GRAY_MODES


def decode(content: bytes, name: str) -> Image.Image:
    """Decode an image file to mode `L` (1-bit, 16-bit, grey with or without alpha) or `RGB` (everything else).

    Alpha is dropped, not blended. 16-bit grey keeps its upper eight bits; Pillow's conversion would clip.

    Args:
        content: the file's bytes.
        name: the image's name, for an error.

    Raises:
        CorruptImageError: the file is empty, truncated, not an image, a decompression bomb, or has floating-point
            pixels.
    """
    image = _open(content, name)
    if image.mode == "F":
        raise corrupt(name, "has floating-point pixels, whose range is not known")
    try:
        image.load()
        if image.mode.startswith("I"):
            return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        if image.mode == "PA" or "transparency" in image.info:
            image = image.convert("LA" if image.mode in GRAY_MODES else "RGBA")
        wanted = "L" if image.mode in GRAY_MODES else "RGB"
        return image if image.mode == wanted else image.convert(wanted)
    except MemoryError:
        raise
    except Exception as problem:  # Pillow's decoders raise exceptions of many kinds
        raise corrupt(name, f"cannot be decoded ({problem})") from None


@dataclass(frozen=True)
class ResizedCrop:
    """Crops a decoded image and resizes it to the network's input: at the centre, or at random.

    Args:
        channels: 1 or 3.
        image_size: side of the square output in pixels.
        share: side of the central square, as a share of the image's shorter side.
        random_crop: whether training images are cropped at random.
        seed: of the run.
        stage: of the run.
    """

    channels: int
    image_size: int
    share: float
    random_crop: bool
    seed: int
    stage: str

    def central(self, image: Image.Image) -> NDArray[np.uint8]:
        """The central square, resized to uint8 [C, S, S].

        Equals resizing the shorter side to S / share and then cropping the centre, up to rounding. It never resizes the
        long side, which would be huge for an image of 1 x 10,000 pixels. An image of the right size is not resampled.
        """
        width, height = image.size
        if self.share == 1 and width == height == self.image_size:
            return self._pixels(image, None)
        side = min(width, height) * self.share
        left, top = (width - side) / 2, (height - side) / 2
        return self._pixels(image, (left, top, left + side, top + side))

    def random(self, image: Image.Image, index: int, step: int) -> NDArray[np.uint8]:
        """A random resized crop, uint8 [C, S, S]; it depends on seed, stage, index and step, not on workers or ranks.

        Args:
            image: the decoded image.
            index: the image's position in its data set.
            step: the iteration.
        """
        draws = generator(self.seed, self.stage, f"crop/{index}", step)
        cut = image.crop(random_crop_box(*image.size, draws))
        return self._pixels(cut, (0, 0, *cut.size))

    def _pixels(self, image: Image.Image, box: Box | None) -> NDArray[np.uint8]:
        wanted = "L" if self.channels == 1 else "RGB"
        if image.mode != wanted:
            image = image.convert(wanted)
        if box is not None:
            image = image.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(image)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)


def random_crop_box(width: int, height: int, draws: torch.Generator) -> tuple[int, int, int, int]:
    """A box with 8 to 100 % of the area and a ratio of 3/4 to 4/3, uniform in area and in the ratio's logarithm.

    Source: torchvision.transforms.RandomResizedCrop.get_params, with its ten attempts and its central fall-back.

    Returns:
        Left, top, right, bottom in pixels.
    """
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    for area, ratio, across, down in torch.rand(10, 4, generator=draws, dtype=torch.float64).tolist():
        target = width * height * (CROP_AREA[0] + area * (CROP_AREA[1] - CROP_AREA[0]))
        aspect = math.exp(low + ratio * (high - low))
        wide, tall = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(across * (width - wide + 1)), int(down * (height - tall + 1))
            return left, top, left + wide, top + tall
    if width / height < CROP_RATIO[0]:
        wide, tall = width, max(1, round(width / CROP_RATIO[0]))
    elif width / height > CROP_RATIO[1]:
        wide, tall = max(1, round(height * CROP_RATIO[1])), height
    else:
        wide, tall = width, height
    wide, tall = min(wide, width), min(tall, height)
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def _open(content: bytes, name: str) -> Image.Image:
    if not content:
        raise corrupt(name, "is empty")
    try:
        image = Image.open(io.BytesIO(content))
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
