"""How an image becomes a network's uint8 input: `ImageReading`, which a data set decides and every later image follows.

Resizing uses Pillow's filters, which antialias when they shrink an image.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor

from ..config.choices import ALPHA_BACKGROUND, INTERPOLATIONS, LARGEST_VALUE, RESIZES
from ..errors import InputError
from ..runtime.random import generator
from ..runtime.sanitize import quoted
from ..transforms.random_resized_crop import random_crop_box, resize_flat
from .decode import GRAY_MODES, CorruptImageError, corrupt, decode, has_alpha

LARGEST_SIZE = 4096
KEPT_SHARE = 0.875  # of the shorter side of an image that is kept for random crops: the output's side
DARK = 2**15

Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # left, top, right, bottom in source pixels
Pixels = NDArray[np.uint8]
Decoded = Image.Image | Pixels  # an image of any mode, or uint8 [H, W, 1 or 3]
_FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}


@dataclass(frozen=True)
class ImageReading:
    """How images of any size and kind become uint8 pixels [channels, image_size, image_size].

    A data set's training split decides it (`DataSplits.reading`). Bundles and network files keep it, so that every
    later image is read as those were that the network learned from.

    Attributes:
        channels: 1 or 3.
        image_size: side of the square output in pixels.
        resize: `crop` keeps the central square, `pad` adds black bars, `squash` changes the aspect ratio.
        share: side of the central square that `crop` keeps, as a share of the image's shorter side.
        interpolation: Pillow's filter: bilinear, bicubic, lanczos or nearest.
        alpha_background: colour that transparent pixels are blended over: `white`, `black` or `#rrggbb`.
        value_range: values of 16-bit, 32-bit and floating-point pixels that become 0 and 255; values beyond are
            clipped. None: 0 and 65535, and floating-point pixels are an error.
    """

    channels: int
    image_size: int
    resize: str = "crop"
    share: float = 1.0
    interpolation: str = "bilinear"
    alpha_background: str = "white"
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        problem = (
            _unless(type(self.channels) is int and self.channels in (1, 3), "channels", self.channels, "1 or 3")
            or _unless(_is_size(self.image_size), "image_size", self.image_size, f"1 to {LARGEST_SIZE}")
            or _unless(self.resize in RESIZES, "resize", self.resize, " or ".join(RESIZES))
            or _unless(_is_number(self.share) and 0 < self.share <= 1, "share", self.share, "above 0, at most 1")
            or _unless(self.interpolation in _FILTERS, "interpolation", self.interpolation, " or ".join(_FILTERS))
            or _unless(is_colour(self.alpha_background), "alpha_background", self.alpha_background, "a colour")
            or _unless(_is_range(self.value_range), "value_range", self.value_range, "two numbers, the lower one first")
        )
        if problem:
            raise ValueError(problem)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` reads them."""
        return asdict(self) | {"value_range": None if self.value_range is None else list(self.value_range)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "image reading") -> Self:
        """The reading that `to_dict` wrote; the values may come from strangers.

        Args:
            values: every field by name, and no other.
            source: name of the file, for an error.

        Raises:
            InputError: a value is missing, unknown, or out of range.
        """
        expected = {field.name for field in fields(cls)}
        try:
            for name in sorted(expected ^ set(values)):
                raise ValueError(f"{quoted(name)} is {'missing' if name in expected else 'unknown'}")
            span = values["value_range"]
            return cls(**{**values, "value_range": tuple(span) if isinstance(span, list) else span})
        except (TypeError, ValueError) as problem:
            why = f"does not say how images are read: {problem}"
            raise InputError(source, why, "get a new copy of the file") from None

    def read(self, content: bytes, name: str) -> Pixels:
        """Decode an image file's content and read it: uint8 [C, S, S].

        Raises:
            CorruptImageError: it cannot be decoded, or has floating-point pixels and the range is not known.
        """
        return self.pixels(decode(content, name), name)

    def pixels(self, image: Image.Image, name: str = "image") -> Pixels:
        """A decoded image of any mode as uint8 [C, S, S], without randomness.

        `crop` equals resizing the shorter side to S / share and then cropping the centre, up to rounding. It never
        resizes the long side, which would be huge for an image of 1 x 10,000 pixels. An image of the right size is not
        resampled.

        Raises:
            CorruptImageError: as `read`.
        """
        image = self.converted(image, name)
        width, height = image.size
        if self.resize == "pad":
            return self._array(self._padded(image))
        if self.resize == "squash" or (self.share == 1 and width == height == self.image_size):
            return self._array(self._resized(image, (0, 0, width, height)))
        side = min(width, height) * self.share
        left, top = (width - side) / 2, (height - side) / 2
        return self._array(self._resized(image, (left, top, left + side, top + side)))

    def random_crop(self, image: Decoded, draws: torch.Generator, name: str = "image") -> Pixels:
        """A random resized crop, uint8 [C, S, S]; `pad` and `squash` make the image square first.

        Bilinear crops are those of images that are kept whole; Pillow's differ from them by 1 level at most.

        Raises:
            CorruptImageError: as `read`.
        """
        whole = self.whole(image, name)
        height, width = whole.shape[:2]
        box = random_crop_box(width, height, draws)
        if self.interpolation != "bilinear":
            cut = _of_pillow(whole[box[1] : box[3], box[0] : box[2]])
            return self._array(self._resized(cut, (0, 0, *cut.size)))
        result: Pixels = np.empty((self.channels, self.image_size, self.image_size), np.uint8)
        start, boxes = np.zeros(1, np.int64), np.array([box], np.float32)
        resize_flat(
            whole.reshape(-1), start, np.array([[height, width]]), boxes, result[None], interleaved=True, cut=True
        )
        return result

    def whole_size(self, width: int, height: int) -> Size:
        """Width and height of the image that random crops are cut from."""
        if self.resize == "crop":
            return width, height
        square = max(width, height) if self.resize == "pad" else _squashed(width, height)
        return square, square

    def whole(self, image: Decoded, name: str = "image") -> Pixels:
        """The image that random crops are cut from, uint8 [height, width, C], contiguous.

        Raises:
            CorruptImageError: as `read`.
        """
        return self._flat(image if self.resize == "crop" else self._for_crops(self.converted(image, name)), name)

    def small_size(self, width: int, height: int) -> Size:
        """Width and height of a copy as small as its central square would be for `KEPT_SHARE`, and never enlarged."""
        width, height = self.whole_size(width, height)
        scale = min(1.0, round(self.image_size / KEPT_SHARE) / min(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def small(self, image: Decoded, size: Size, name: str = "image") -> Pixels:
        """A smaller copy that random crops are cut from, uint8 [C, height, width]; bilinear, antialiased.

        Args:
            image: decoded, perhaps at a smaller size than its file's.
            size: width and height, as `small_size` says; with its sides exchanged if the image has them so.
            name: of the image, for an error.

        Raises:
            CorruptImageError: as `read`.
        """
        if self.resize == "pad":
            return self._array(self._padded(self.converted(image, name), size[0]))
        pixels = self._flat(image, name)
        height, width = pixels.shape[:2]
        if (width - height) * (size[0] - size[1]) < 0:
            size = size[1], size[0]
        if (width, height) == size:
            return pixels.transpose(2, 0, 1)
        result: Pixels = np.empty((self.channels, size[1], size[0]), np.uint8)
        box = np.array([[0, 0, width, height]], np.float32)
        sizes, start = np.array([[height, width]]), np.zeros(1, np.int64)
        resize_flat(pixels.reshape(-1), start, sizes, box, result[None], interleaved=True)
        return result

    def converted(self, image: Decoded, name: str = "image") -> Image.Image:
        """The image in mode `L` or `RGB`: alpha blended over the background, values of wide pixels scaled to 8 bits.

        Raises:
            CorruptImageError: as `read`.
        """
        wanted = "L" if self.channels == 1 else "RGB"
        if isinstance(image, np.ndarray):
            image = _of_pillow(image)
        if image.mode == wanted and "transparency" not in image.info:
            return image
        try:
            if image.mode == "F" or image.mode.startswith("I"):
                image = self._scaled(image, name)
            elif has_alpha(image):
                image = self._blended(image)
            elif image.mode not in ("L", "RGB"):
                image = image.convert(_base(image))
            return image if image.mode == wanted else image.convert(wanted)
        except (MemoryError, CorruptImageError):
            raise
        except Exception as problem:  # Pillow's conversions raise exceptions of many kinds
            raise corrupt(name, f"cannot be converted ({problem})") from None

    def looks_dark(self, image: Image.Image) -> bool:
        """Whether all values of an image lie in the lower half of 16 bits, and nothing says which of them is white."""
        wide = image.mode.startswith("I") and self.value_range is None
        return wide and bool(np.asarray(image).max(initial=0) < DARK)

    def _scaled(self, image: Image.Image, name: str) -> Image.Image:
        values = np.asarray(image)
        if self.value_range is None:
            if image.mode == "F":
                raise corrupt(name, "has floating-point pixels, whose range is not known")
            return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
        low, high = self.value_range
        share = np.nan_to_num((values.astype(np.float64) - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
        return Image.fromarray(np.rint(255 * share.clip(0, 1)).astype(np.uint8))

    def _blended(self, image: Image.Image) -> Image.Image:
        pixels = image.convert("RGBA")
        background = Image.new("RGBA", image.size, ImageColor.getcolor(self.alpha_background, "RGBA"))
        return Image.alpha_composite(background, pixels).convert(_base(image))

    def _for_crops(self, image: Image.Image) -> Image.Image:
        """What random crops are cut from: the image; `pad` and `squash` make it square, and no smaller."""
        if self.resize == "pad":
            return self._padded(image, max(image.size))
        if self.resize == "squash":
            side = _squashed(*image.size)
            return image.resize((side, side), _FILTERS[self.interpolation])
        return image

    def _padded(self, image: Image.Image, side: int | None = None) -> Image.Image:
        """The image on a black square, as large as fits."""
        side = side or self.image_size
        width, height = image.size
        scale = side / max(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        inner = image if image.size == size else image.resize(size, _FILTERS[self.interpolation])
        square = Image.new(image.mode, (side, side))
        square.paste(inner, ((side - size[0]) // 2, (side - size[1]) // 2))
        return square

    def _resized(self, image: Image.Image, box: Box) -> Image.Image:
        size = (self.image_size, self.image_size)
        if image.size == size and box[2] - box[0] == box[3] - box[1] == self.image_size:
            return image
        return image.resize(size, _FILTERS[self.interpolation], box=box)

    def _flat(self, image: Decoded, name: str) -> Pixels:
        """The image at its own size, uint8 [H, W, C], contiguous."""
        if not (isinstance(image, np.ndarray) and image.shape[2] == self.channels):
            image = np.asarray(self.converted(image, name))
        return np.ascontiguousarray(image).reshape(*image.shape[:2], self.channels)

    def _array(self, image: Image.Image) -> Pixels:
        pixels = np.asarray(image)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)


@dataclass(frozen=True)
class Cropper:
    """Reads the images of a run's batches: at the centre, or as random crops that follow from the run's seed.

    Args:
        reading: how images are read.
        random_crop: whether training images are cropped at random.
        seed: of the run.
        stage: of the run.
    """

    reading: ImageReading
    random_crop: bool
    seed: int
    stage: str

    def central(self, image: Image.Image, name: str = "image") -> Pixels:
        """The image without randomness, uint8 [C, S, S]."""
        return self.reading.pixels(image, name)

    def random(self, image: Decoded, index: int, step: int, name: str = "image") -> Pixels:
        """A random resized crop, uint8 [C, S, S]; it depends on seed, stage, index and step, not on workers or ranks.

        Args:
            image: the decoded image.
            index: the image's position in its data set.
            step: the iteration.
            name: the image's name, for an error.
        """
        return self.reading.random_crop(image, generator(self.seed, self.stage, f"crop/{index}", step), name)


def _of_pillow(pixels: Pixels) -> Image.Image:
    """Pixels uint8 [H, W, 1 or 3] as an image of mode `L` or `RGB`."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _squashed(width: int, height: int) -> int:
    """Side of the square that an image of another shape becomes: not that of a needle's length."""
    return min(max(width, height), 4 * min(width, height))


def is_colour(value: object) -> bool:
    """Whether a value is a colour of `alpha_background`."""
    return isinstance(value, str) and re.fullmatch(ALPHA_BACKGROUND, value) is not None


def _base(image: Image.Image) -> str:
    return "L" if image.mode in GRAY_MODES else "RGB"


def _unless(fits: bool, name: str, value: object, expected: str) -> str:
    return "" if fits else f"{name} is {quoted(value)}, expected {expected}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_SIZE


def _is_range(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, tuple) or len(value) != 2 or not all(map(_is_number, value)):
        return False
    return bool(-LARGEST_VALUE <= value[0] < value[1] <= LARGEST_VALUE)
