"""What the images of a data set are like, from their headers, and what that decides: how images are read."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import RunConfig
from ..config.choices import EVALUATION_SHARE, LARGEST_VALUE
from ..runtime.words import plural, plural_are
from .decode import CorruptImageError, Header, bombs_as_errors
from .image_dataset import ImageSet
from .loader import threaded_map
from .reading import ImageReading

SURVEYED = 100_000  # images of which all headers are read; of a larger set so many, evenly spaced
MEASURED = 20_000  # images that are decoded to find out the range of their values, likewise
USUAL_SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384)
WIDE_SHARE = 0.6  # of a median image: a central square that keeps less gets a hint
UNEVEN = 5  # times as many images in the largest class as in the smallest
FULL_RANGE = (32768, 65535)  # the largest value of images that use all of 16 bits lies between these


@dataclass(frozen=True)
class Survey:
    """Counts over the headers of images.

    Attributes:
        images: number of images whose headers were read.
        total: number of images that there are.
        width, height: medians, in pixels.
        side: median of the images' shorter sides, in pixels; below width and height where some images are upright and
            others are not.
        square_share: median share of an image that its central square has, 0 to 1.
        smallest, largest: smallest and largest side, in pixels.
        formats, modes: number of images by Pillow's names.
        colour: images with three channels.
        transparent: images with an alpha channel or a transparent colour.
        turned: images that are stored in another orientation than they are seen in.
        animated: images with several frames.
        wide: positions of the images with more than eight bits a pixel, among those whose headers were read.
        unreadable: by position, what is wrong with images that have no header.
        sizes: by position, width and height of the images whose headers were read.
    """

    images: int
    total: int
    width: int
    height: int
    side: int
    square_share: float
    smallest: int
    largest: int
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    colour: int
    transparent: int
    turned: int
    animated: int
    wide: tuple[int, ...]
    unreadable: Mapping[int, str]
    sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> str:
        """The median size in words."""
        return f"{self.width} x {self.height}"

    def fact(self, reading: ImageReading) -> str:
        """The images' size, and the size that they are used at, in words."""
        each = "" if self.smallest == self.largest else " (median)"
        if self.side != min(self.width, self.height):
            each = f" (medians; that of the shorter side is {self.side})"
        return f"{self.size}{each}, used at {reading.image_size} x {reading.image_size}"

    def figures(self) -> dict[str, Any]:
        """All of it but each image's size as plain values, for JSON."""
        found = asdict(replace(self, sizes={})) | {"wide": len(self.wide), "unreadable": len(self.unreadable)}
        del found["sizes"]
        return found


def survey(images: ImageSet, indices: Tensor) -> Survey:
    """Read the headers of images: of all of them, or of `SURVEYED` evenly spaced ones.

    Where those are all grey, the others are searched for a colour image too: it decides the number of channels.

    Args:
        images: the image set.
        indices: int64: which of them.
    """
    order = spread(indices, SURVEYED)
    found = _headers(images, order)
    headers = [header for header in found if isinstance(header, Header)]
    colour = sum(not header.gray for header in headers)
    if not colour and len(order) < len(indices):
        rest = indices[~torch.isin(indices, torch.tensor(order))].tolist()
        colour = sum(isinstance(each, Header) and not each.gray for each in _headers(images, rest))
    sides = [side for header in headers for side in (header.width, header.height)] or [0]
    shares = [min(each.width, each.height) / max(each.width, each.height, 1) for each in headers] or [1.0]
    return Survey(
        images=len(order),
        total=len(indices),
        width=round(statistics.median([header.width for header in headers] or [0])),
        height=round(statistics.median([header.height for header in headers] or [0])),
        side=round(statistics.median([min(header.width, header.height) for header in headers] or [0])),
        square_share=statistics.median(shares),
        smallest=min(sides),
        largest=max(sides),
        formats=_counts(header.format or "arrays" for header in headers),
        modes=_counts(header.mode for header in headers),
        colour=colour,
        transparent=sum(header.alpha for header in headers),
        turned=sum(header.turned for header in headers),
        animated=sum(header.animated for header in headers),
        wide=tuple(i for i, header in zip(order, found, strict=True) if isinstance(header, Header) and header.wide),
        unreadable={i: why for i, why in zip(order, found, strict=True) if isinstance(why, str)},
        sizes={i: (each.width, each.height) for i, each in zip(order, found, strict=True) if isinstance(each, Header)},
    )


def choose_reading(config: RunConfig, found: Survey, images: ImageSet, training: Tensor) -> ImageReading:
    """How the images of a data set, and every later image, are read.

    Args:
        config: its image_size, resize, interpolation, alpha_background, value_range and base_augmentation are used.
        found: headers of the pool.
        images: the pool.
        training: int64: the training split, whose values decide the range.

    Raises:
        CorruptImageError: an image whose values are needed cannot be decoded.
    """
    crops = config.base_augmentation == "random_resized_crop"
    span = config.fixed_value_range
    if config.value_range == "auto":
        used = set(training.tolist())
        span = measured_range(images, [index for index in found.wide if index in used])
    return ImageReading(
        channels=3 if found.colour else 1,
        image_size=config.image_size,
        resize=config.resize,
        share=EVALUATION_SHARE if crops and config.resize == "crop" else 1.0,
        interpolation=config.interpolation,
        alpha_background=config.alpha_background,
        value_range=span,
    )


def measured_range(images: ImageSet, indices: Sequence[int]) -> tuple[float, float] | None:
    """The smallest and the largest value of images with more than eight bits a pixel.

    None for no images, and for unsigned ones that use all of 16 bits: their upper eight bits are taken.

    Raises:
        CorruptImageError: one cannot be decoded.
    """
    if not indices:
        return None

    def ends(index: int) -> tuple[float, float, bool]:
        image = images.read(index)
        values = np.asarray(image)
        values = values[np.isfinite(values)] if image.mode == "F" else values
        if not values.size:
            return float("inf"), float("-inf"), True
        return float(values.min()), float(values.max()), image.mode == "F"

    with bombs_as_errors():
        found = threaded_map(spread(torch.tensor(indices), MEASURED), ends)
    low, high = max(-LARGEST_VALUE, min(each[0] for each in found)), min(LARGEST_VALUE, max(each[1] for each in found))
    if low >= 0 and FULL_RANGE[0] <= high <= FULL_RANGE[1] and not any(each[2] for each in found):
        return None
    return (low, high) if low < high else (min(low, LARGEST_VALUE - 1), min(low, LARGEST_VALUE - 1) + 1)


def notes(found: Survey, reading: ImageReading, classes: Sequence[int], balance: str = "none") -> list[str]:
    """Sentences for the user about uneven classes, and about images that are read in a way that they may not expect.

    Args:
        found: headers of the pool.
        reading: how they are read.
        classes: number of images of each class.
        balance: the setting of that name.
    """
    lines = []
    if max(classes) >= UNEVEN * min(classes):
        remedy = "; --balance sampler or --balance loss makes up for it" if balance == "none" else ""
        lines.append(
            f"classes have {min(classes)} to {max(classes)} images: top-1 is mostly that of the large ones, so look at "
            f"the balanced accuracy and at each class{remedy}"
        )
    if found.images < found.total:
        lines.append(f"the headers of {found.images} of {found.total} images were read, evenly spaced")
    readable = found.images - len(found.unreadable)
    if 0 < found.colour < readable:
        lines.append(f"{found.colour} of {readable} images are in colour, so all are read in colour")
    if found.transparent:
        background = reading.alpha_background
        lines.append(
            f"{plural(found.transparent, 'image')} can be transparent: blended over {background} (alpha_background)"
        )
    if found.animated:
        lines.append(f"{plural_are(found.animated, 'image')} animated: the first frame is read")
    if found.wide and reading.value_range is not None:
        low, high = (f"{value:g}" for value in reading.value_range)
        lines.append(
            f"{plural(len(found.wide), 'image')} with more than 8 bits a pixel: values {low} to {high}, "
            "the range of the training split, become black to white (value_range)"
        )
    return [*lines, *_size_notes(found, reading)]


def _size_notes(found: Survey, reading: ImageReading) -> list[str]:
    lines, used = [], f"{reading.image_size} x {reading.image_size}"
    if found.side >= 2 * reading.image_size:
        sizes = [str(size) for size in USUAL_SIZES if reading.image_size < size <= found.side]
        named = f": --image-size {' or '.join(sizes[-3:])} shows more" if sizes else ""
        lines.append(f"the images' shorter side has {found.side} pixels (median), and they are used at {used}{named}")
    if reading.resize == "crop" and found.square_share < WIDE_SHARE:
        lines.append(
            f"the central square of a median image is {100 * found.square_share:.0f} % of it, and the rest is not "
            "seen; --resize pad or --resize squash keeps all of it"
        )
    return lines


def _headers(images: ImageSet, order: Sequence[int]) -> list[Header | str]:
    def header(index: int) -> Header | str:
        try:
            return images.header(index)
        except CorruptImageError as problem:
            return problem.why

    with bombs_as_errors():
        return threaded_map(order, header)


def spread(indices: Tensor, most: int) -> list[int]:
    """At most so many of the indices, evenly spaced."""
    if len(indices) <= most:
        return [int(index) for index in indices.tolist()]
    at = torch.linspace(0, len(indices) - 1, most, dtype=torch.float64).round().to(torch.int64)
    return [int(index) for index in indices[at].tolist()]


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
