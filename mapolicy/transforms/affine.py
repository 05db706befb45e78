"""Operations that move pixels, in place. ShearX and the translations move whole rows, Rotate and ShearY each pixel.

A pixel takes the value of the nearest source pixel. Positions are computed as in Pillow (Geometry.c, affine_fixed): in
16.16 fixed point, from the centre of the first pixel, for sides that add up to less than 16,384. Pillow has another
code path for matrices that only scale; for Rotate and the shears it gives the same pixels.

Each pair of functions serves one family of operations, see `functional.Family`.

Sources: Pillow, Image.rotate; in libImaging Geometry.c.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Values = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def _fixed(number: Values) -> Integers:
    """Numbers in 16.16 fixed point."""
    return np.floor(number * 65536 + 0.5).astype(np.int64)


def _limit(number: npt.NDArray[Any], low: int, high: int) -> None:
    """np.clip in place; for short arrays it takes a third of the time."""
    np.minimum(number, high, out=number)
    np.maximum(number, low, out=number)


def _whole(value: Values, side: int) -> Integers:
    """Shifts [n] in shares of the side as whole pixels [n, 1], at most the side (Geometry.c, ImagingScaleAffine)."""
    # Pillow adds 1 for each pixel in double precision; the rounding differs by 1e-13 pixels.
    pixels = np.floor(value * side + 0.5)
    _limit(pixels, -side, side)
    return pixels.astype(np.int64)[:, None]


def _sheared(value: Values, length: int, side: int) -> Integers:
    """Whole pixels [n, length] by which a shear moves each of `length` lines, at most the line's side."""
    shift: Integers = (_fixed(0.5 + 0.5 * value)[:, None] + _fixed(value)[:, None] * np.arange(length)) >> 16
    _limit(shift, -side, side)
    return shift


def row_starts(counts: Sequence[int], value: Values, height: int, width: int) -> Integers:
    """For ShearX, TranslateX, TranslateY: where each row begins in its channel as padded by `move_rows`, [n, H]."""
    sheared, moved = counts[0], counts[0] + counts[1]
    start = np.empty((len(value), height), np.int64)
    start[:] = np.arange(width, 2 * height * width, 2 * width)
    start[:sheared] += _sheared(value[:sheared], height, width)
    start[sheared:moved] += _whole(value[sheared:moved], width)
    # A row from outside the image is the padding before the first row or after the last.
    start[moved:] += _whole(value[moved:], height) * (2 * width)
    _limit(start[moved:], 0, 2 * height * width)
    return start


def move_rows(images: Tensor, counts: Sequence[int], parameters: Tensor, fill: Tensor) -> None:
    """Copy every row from a window of its channel, in which rows of the fill colour surround each row of the image."""
    n, channels, height, width = images.shape
    padded = fill.view(-1, 1, 1).expand(n, channels, 2 * height + 1, width).contiguous()
    padded[:, :, 1::2] = images
    first = torch.arange(0, padded.numel(), (2 * height + 1) * width, device=images.device).view(n, channels, 1)
    start = (first + parameters[:, None]).view(-1)
    windows = padded.view(-1).as_strided((padded.numel() - width + 1, width), (1, 1))
    torch.index_select(windows, 0, start, out=images.view(-1, width))


def coordinates(counts: Sequence[int], value: Values, height: int, width: int) -> npt.NDArray[np.int32]:
    """For Rotate and ShearY: a pixel's source position is the sum of a term of its row and a term of its column.

    In 16.16 fixed point, [n, 2, H + W]: x, then y; the terms of the rows, then those of the columns. Positions include
    the border of one pixel that `gather_pixels` adds.
    """
    rotated = counts[0]
    border = 1 << 16
    columns, lines = np.arange(width), np.arange(height)
    terms = np.empty((len(value), 2, height + width), np.int32)
    # Image.rotate: counter-clockwise about the centre. It copies for quarter turns and rounds the coefficients to 15
    # digits; neither changes a result that is rounded to 16 bits.
    angle = value[:rotated] * (-math.pi / 180)
    cosine, sine = np.cos(angle), np.sin(angle)
    x, y = width / 2, height / 2
    for axis, (across, down, centre) in enumerate([(cosine, sine, x), (-sine, cosine, y)]):
        first = _fixed(across * -x + down * -y + centre + across * 0.5 + down * 0.5) + border
        terms[:rotated, axis, :height] = first[:, None] + _fixed(down)[:, None] * lines
        terms[:rotated, axis, height:] = _fixed(across)[:, None] * columns
    terms[rotated:, 0, :height] = border
    terms[rotated:, 0, height:] = columns << 16
    terms[rotated:, 1, :height] = (lines << 16) + border
    # At most the side, so that no shear exceeds 32 bits.
    terms[rotated:, 1, height:] = _sheared(value[rotated:], width, height) << 16
    return terms


def gather_pixels(images: Tensor, counts: Sequence[int], parameters: Tensor, fill: Tensor) -> None:
    """Copy each pixel from its source position, which is the same for all channels."""
    n, channels, height, width = images.shape
    # A border of the fill colour stands for everything outside.
    padded = fill.view(-1, 1, 1).expand(n, channels, height + 2, width + 2).contiguous()
    padded[..., 1:-1, 1:-1] = images
    row, column = parameters.split_with_sizes([height, width], 2)
    x, y = (row[..., None] + column[:, :, None]).bitwise_right_shift_(16).unbind(1)
    x.clamp_(0, width + 1).add_(y.clamp_(0, height + 1), alpha=width + 2)
    place = x.reshape(n, 1, -1).long().expand(-1, channels, -1)
    torch.gather(padded.flatten(2), 2, place, out=images.flatten(2))
