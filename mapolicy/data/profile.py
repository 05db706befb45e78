"""What a data set is like, found out in seconds from some of its images: what a search's settings are chosen from."""

import statistics
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..config import RunConfig
from ..errors import MapolicyError
from .damaged import left_out
from .decode import WIDE_MODES, CorruptImageError, bombs_as_errors
from .image_dataset import ImageSet, Source
from .loader import threaded_map
from .stratify import draw_splits
from .survey import spread

HEADERS = 4096  # of so many images the size is read
DECODED = 64  # so many are decoded
LEVELS = 16  # neighbouring grey values that count as one, so that JPEG's noise does not
DRAWN_SHARE = 0.7  # of an image's pixels in two levels: ink on paper
TINT, TINTED_SHARE = 16, 0.01  # so much between the channels of more pixels than this share is colour
FEW_VALUES = 32  # distinct grey values of an image that no camera made


@dataclass(frozen=True)
class DataProfile:
    """What the settings of a search are chosen from.

    Attributes:
        names: of the classes.
        sizes: for each class, its number of images in the pool, which the splits are drawn from.
        own_validation: number of images in the data set's own validation split; 0 without one.
        damaged: number of images for training and meta-validation that are left out because they cannot be decoded.
        own_test: whether the data set has a test split of its own.
        side: median of the images' shorter sides, pixels.
        grey: whether all images that were looked at are grey, however they are stored.
        drawn: whether these are grey images of characters or lines: nearly all pixels have one of two values.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    side: int
    grey: bool = False
    drawn: bool = False
    own_validation: int = 0
    own_test: bool = False
    damaged: int = 0

    @property
    def images(self) -> int:
        """Number of images in the pool."""
        return sum(self.sizes)


def profile(source: Source, config: RunConfig | None = None) -> DataProfile:
    """Look at some images of an opened data set, evenly spaced. Images that cannot be read are left out.

    Args:
        source: the data set.
        config: of the run, whose test images are not looked at; with `skip_corrupt` all others are decoded to count
            those that the run leaves out. None looks at all images.
    """
    pool = source.pool
    usable, damaged = (torch.arange(len(pool)), 0) if config is None else _usable(source, config)
    sides = [side for side in threaded_map(spread(usable, HEADERS), lambda index: _side(pool, index)) if side]
    with bombs_as_errors():
        greys = threaded_map(spread(usable, DECODED), lambda index: _grey(pool, index))
    seen = [levels for levels, known in greys if known]
    grey = bool(seen) and all(levels is not None for levels in seen)
    return DataProfile(
        names=source.classes,
        sizes=tuple(torch.bincount(pool.labels, minlength=len(source.classes)).tolist()),
        side=round(statistics.median(sides or [0])),
        grey=grey,
        drawn=grey and statistics.mean(_is_drawn(levels) for levels in seen if levels is not None) > 0.5,
        own_validation=0 if source.meta_validation is None else len(source.meta_validation),
        own_test=source.open_test is not None,
        damaged=damaged,
    )


def _usable(source: Source, config: RunConfig) -> tuple[Tensor, int]:
    """The images that are neither test images nor damaged, and how many damaged ones a run leaves out."""
    try:
        drawn = draw_splits(source, config, None, partial(left_out, source.pool, config.skip_corrupt))
    except MapolicyError:  # the run says why
        return torch.arange(len(source.pool)), 0
    own = set() if source.meta_validation is None else set(source.meta_validation.tolist())
    return torch.cat(drawn.usable).sort().values, len(drawn.corrupt.keys() - own)


def _side(images: ImageSet, index: int) -> int:
    """The shorter side in pixels; 0 where it cannot be read."""
    try:
        header = images.header(index)
    except CorruptImageError:
        return 0
    return min(header.width, header.height)


def _grey(images: ImageSet, index: int) -> tuple[NDArray[np.uint8] | None, bool]:
    """The grey values of an image, None for one in colour; and whether it could be read."""
    try:
        image = images.read(index)
    except CorruptImageError:
        return None, False
    if image.mode in WIDE_MODES:  # a scanner's or an instrument's
        return _eight_bits(image), True
    pixels = np.asarray(image.convert("RGB"))
    if (np.ptp(pixels, axis=-1) > TINT).mean() > TINTED_SHARE:
        return None, True
    return pixels[..., 1], True


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _is_drawn(values: NDArray[np.uint8]) -> bool:
    counts = np.sort(np.bincount(values.ravel() // LEVELS, minlength=256 // LEVELS))
    return bool(counts[-2:].sum() >= DRAWN_SHARE * values.size) or len(np.unique(values)) <= FEW_VALUES
