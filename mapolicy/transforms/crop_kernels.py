"""Antialiased bilinear crops on a CPU, as loops that numba compiles: Pillow's `resize(size, BILINEAR, box=box)`.

The coefficients, their fixed point, the order of the two passes and the rounding between them are Pillow's. Both passes
run along memory, over all rows of a column or all columns of a row at once; between them the pixels are transposed.

Source: Pillow, libImaging/Resample.c.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .cpu_kernels import Pixels, compiled

Integers = npt.NDArray[np.int64]
Weights = npt.NDArray[np.int32]
Boxes = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint64]

PRECISION = 22  # bits of a weight behind the binary point
TILE = 8  # pixels on each side of what is transposed at once
BAND = 256  # pixels that are transposed at once in a row

_I32, _U64, _INDEX = np.int32, np.uint64, np.uintp


@compiled
def resize_boxes(
    pixels: Pixels,
    start: Integers,
    height: Integers,
    width: Integers,
    interleaved: bool,
    boxes: Boxes,
    cut: bool,
    result: Pixels,
    first: int,
    last: int,
) -> None:
    """Cut a box out of each of some images and resize it.

    Args:
        pixels: uint8 [N], all images one after the other.
        start: int64 [B], where in `pixels` each image begins.
        height, width: int64 [B], of each image.
        interleaved: whether an image is [height, width, C], else [C, height, width].
        boxes: float32 [B, 4], left, top, right, bottom in pixels, inside the image; whole numbers with `cut`.
        cut: whether a box is cut out first, so that no pixel outside has a weight; Pillow's `crop` and then `resize`.
        result: uint8 [B, C, H, W], overwritten from image `first` to before image `last`.
        first, last: the images that this call changes.
    """
    channels, tall, side = result.shape[1], result.shape[2], result.shape[3]
    together = channels if interleaved else 1  # channels that lie in one row
    across, down = np.empty((side, 2), np.int64), np.empty((tall, 2), np.int64)
    scratch = np.empty(BAND * TILE, np.uint8)
    for i in range(first, last):
        high, wide = height[i], width[i]
        left, top, right, bottom = boxes[i]
        weights_across = _weights(left if cut else 0, right if cut else wide, left, right, side, across)
        weights_down = _weights(top if cut else 0, bottom if cut else high, top, bottom, tall, down)
        x, y = across[0, 0], down[0, 0]
        columns, rows = across[side - 1, 0] + across[side - 1, 1] - x, down[tall - 1, 0] + down[tall - 1, 1] - y
        across[:, 0] -= x
        down[:, 0] -= y
        long_rows, long_side = _apart(rows), _apart(side)
        turned = np.empty(_apart(columns * together) * long_rows, np.uint8)
        narrow, upright = np.empty(long_side * long_rows, np.uint8), np.empty(long_rows * long_side, np.uint8)
        sums = np.empty(max(long_rows, long_side), np.int32)
        for channel in range(channels):
            origin = start[i] + (channel // together * high + y) * wide * together + x * together
            if channel % together == 0:
                _transpose(pixels, origin, wide * together, rows, columns * together, scratch, turned, long_rows)
            offset, pitch = channel % together * long_rows, together * long_rows
            _combine(turned, offset, pitch, rows, across, weights_across, sums, narrow, long_rows)
            _transpose(narrow, 0, long_rows, side, rows, scratch, upright, long_side)
            _combine(upright, 0, long_side, side, down, weights_down, sums, result[i, channel].reshape(-1), side)


@compiled
def _apart(number: int) -> int:
    """Bytes from a line to the next: an odd number of words, so that a column's pixels spread over the cache."""
    return ((number + TILE - 1) // TILE | 1) * TILE


@compiled
def _weights(start: int, end: int, low: float, high: float, side: int, bounds: Integers) -> Weights:
    """`precompute_coeffs` and `normalize_coeffs_8bpc`: weights int32 [side, taps] of each output pixel's input pixels.

    Args:
        start, end: the pixels along this side that may have a weight.
        low, high: ends of the box.
        side: output pixels.
        bounds: int64 [side, 2], overwritten with the first input pixel and their number.
    """
    scale = (float(high) - float(low)) / side
    stretch = max(scale, 1.0)  # at which the triangle also covers all pixels of an image that shrinks
    found = np.zeros((side, math.ceil(stretch) * 2 + 1), np.int32)
    values = np.empty(found.shape[1], np.float64)
    for j in range(side):
        centre = float(low) + (j + 0.5) * scale
        begin = max(int(centre - stretch + 0.5), int(start))
        number = min(int(centre + stretch + 0.5), int(end)) - begin
        total = 0.0
        for k in range(number):
            values[k] = max(1.0 - abs((k + begin - centre + 0.5) * (1.0 / stretch)), 0.0)
            total += values[k]
        for k in range(number):
            found[j, k] = int(0.5 + values[k] / total * (1 << PRECISION))
        bounds[j, 0], bounds[j, 1] = begin, number
    return found


@compiled
def _combine(
    lines: Pixels,
    origin: int,
    stride: int,
    size: int,
    bounds: Integers,
    weights: Weights,
    sums: Weights,
    target: Pixels,
    apart: int,
) -> None:
    """For each line of `target` a weighted sum of neighbouring lines, rounded.

    It needs no clipping: rounded weights add up to so little more than 1 that 255 stays below 256.

    Args:
        lines: uint8, lines of `size` bytes that begin `stride` bytes from another, the first one at `origin`.
        bounds, weights: as `_weights` finds them.
        sums: int32 [size or more], overwritten.
        target: its lines begin `apart` bytes from another.
    """
    # Plain indices, since numba counts the references to each slice; unsigned, so that it checks none for a minus sign.
    half, count = _I32(1 << (PRECISION - 1)), _INDEX(size)
    for j in range(bounds.shape[0]):
        begin, number = bounds[j, 0], bounds[j, 1]
        into, one = _INDEX(j * apart), _INDEX(origin + begin * stride)
        two, three = one + _INDEX(stride), one + _INDEX(2 * stride)
        a, b, c = weights[j, 0], weights[j, 1], weights[j, 2]
        if number == 1:
            for k in range(count):
                target[into + k] = lines[one + k]
        elif number == 2:
            for k in range(count):
                total = half + a * _I32(lines[one + k]) + b * _I32(lines[two + k])
                target[into + k] = total >> _I32(PRECISION)
        elif number == 3:
            for k in range(count):
                total = half + a * _I32(lines[one + k]) + b * _I32(lines[two + k]) + c * _I32(lines[three + k])
                target[into + k] = total >> _I32(PRECISION)
        else:
            for k in range(count):
                sums[k] = half + a * _I32(lines[one + k]) + b * _I32(lines[two + k]) + c * _I32(lines[three + k])
            for tap in range(3, number):
                line, weight = one + _INDEX(tap * stride), weights[j, tap]
                for k in range(count):
                    sums[k] += weight * _I32(lines[line + k])
            for k in range(count):
                target[into + k] = sums[k] >> _I32(PRECISION)


@compiled
def _transpose(
    source: Pixels, origin: int, stride: int, rows: int, columns: int, scratch: Pixels, target: Pixels, apart: int
) -> None:
    """target[column, row] = source[row, column], by tiles of 8 x 8 bytes.

    Args:
        source: its rows begin at `origin`, `stride` bytes from another.
        scratch: uint8 [`BAND` * 8].
        target: its rows begin `apart` bytes from another, a multiple of 8; what follows in the last 8 is arbitrary.
    """
    words, into, step = scratch.view(np.uint64), target.view(np.uint64), _INDEX(apart // TILE)
    for x in range(0, columns, BAND):
        wide = min(BAND, columns - x)
        tiles = (wide + TILE - 1) // TILE
        for y in range(0, rows, TILE):
            for r in range(min(TILE, rows - y)):
                begin, line = _INDEX(origin + (y + r) * stride + x), _INDEX(r * BAND)
                for k in range(_INDEX(wide)):
                    scratch[line + k] = source[begin + k]
            # Halves of a tile's rows, then quarters, then bytes are exchanged across the diagonal.
            for r in range(4):
                _exchange(words, r, 4, tiles, _U64(0x00000000FFFFFFFF))
            for r in range(2):
                _exchange(words, r, 2, tiles, _U64(0x0000FFFF0000FFFF))
                _exchange(words, r + 4, 2, tiles, _U64(0x0000FFFF0000FFFF))
            for r in range(0, 8, 2):
                _exchange(words, r, 1, tiles, _U64(0x00FF00FF00FF00FF))
            for t in range(_INDEX(tiles)):
                place = (_INDEX(x) + t * _INDEX(TILE)) * step + _INDEX(y // TILE)
                for r in range(_INDEX(TILE)):
                    into[place + r * step] = words[r * _INDEX(BAND // TILE) + t]


@compiled
def _exchange(words: Words, row: int, apart: int, tiles: int, low: Any) -> None:
    """Exchange parts of this row and of the row so many below, in each tile."""
    bits, one, between = _U64(8 * apart), _INDEX(row * (BAND // TILE)), _INDEX(apart * (BAND // TILE))
    for k in range(one, one + _INDEX(tiles)):
        a, b = words[k], words[k + between]
        words[k] = (a & low) | ((b & low) << bits)
        words[k + between] = ((a >> bits) & low) | (b & ~low)
