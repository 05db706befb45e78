"""The operations on a CPU, as loops that numba compiles. Each image passes through all of its operations in turn.

The arithmetic is that of `pointwise`, `blend` and `affine`, which serve other devices. One image and its intermediate
results fit into the processor's cache. The first call in an environment compiles for some seconds; the machine code is
stored beside this file or in the user's cache.

Sources: Pillow, ImageOps.py, ImageEnhance.py, Image.rotate; in libImaging Blend.c, Convert.c, Filter.c, Geometry.c.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

Pixels = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Function = TypeVar("Function", bound=Callable[..., Any])

# With plain numbers numba would compute in 64 bits, and a vector register would hold a quarter or an eighth as many.
_U8, _U16, _I32, _F32, _INDEX = np.uint8, np.uint16, np.int32, np.float32, np.uintp


def compiled(function: Function) -> Function:
    """Compile a function at its first call; the machine code is stored on disk where a folder is writable."""
    try:
        result: Any = njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # numba finds no such folder
        result = njit(nogil=True, error_model="numpy")(function)
    return cast(Function, result)


@compiled
def transform(
    images: Pixels, operation: Integers, value: Values, fill: Pixels, result: Pixels, first: int, last: int
) -> None:
    """Apply to each image its own operations, one after the other.

    Args:
        images: uint8 [n, C, H, W], C-contiguous, C = 1 or 3.
        operation: int64 [steps, n], positions in the paper's order (`space.OPERATION_NAMES`).
        value: float64 [steps, n], in the units of `space.Range`.
        fill: uint8 [C], colour of pixels from outside the image.
        result: uint8 [n, C, H, W], overwritten from image `first` to before image `last`.
        first, last: the images that this call changes.
    """
    steps = operation.shape[0]
    between = np.empty((2, *images.shape[1:]), np.uint8)
    table, histogram = np.empty(256, np.uint8), np.empty((4, 256), np.int32)
    line = np.empty(images.shape[3], np.int32)
    for i in range(first, last):
        source = images[i]
        for step in range(steps):
            target = result[i] if step == steps - 1 else between[step % 2]
            _operate(operation[step, i], value[step, i], source, target, fill, table, histogram, line)
            source = target


@compiled
def _operate(
    operation: int,
    value: float,
    source: Pixels,
    target: Pixels,
    fill: Pixels,
    table: Pixels,
    histogram: npt.NDArray[np.int32],
    line: npt.NDArray[np.int32],
) -> None:
    """Apply one operation to one image; the operation is its position in the paper's order."""
    channels, height, width = source.shape
    flat, into = source.reshape(-1), target.reshape(-1)
    factor = _F32(1 + value)
    if operation == 0:
        for channel in range(channels):
            _auto_contrast(source[channel].reshape(-1), target[channel].reshape(-1), table)
    elif operation == 1:
        for channel in range(channels):
            _equalize(source[channel].reshape(-1), target[channel].reshape(-1), table, histogram)
    elif operation == 2:
        _rotate(source, target, value, fill, line)
    elif operation == 3:
        _posterize(flat, into, value)
    elif operation == 4:
        _solarize(flat, into, value)
    elif operation == 5 and channels == 3:
        _color(source.reshape(3, -1), target.reshape(3, -1), factor)
    elif operation == 6:
        _blend(flat, into, factor, _F32(_mean(source)))
    elif operation == 7:
        _blend(flat, into, factor, _F32(0))
    elif operation == 8 and height > 2 and width > 2:
        for channel in range(channels):
            _sharpness(source[channel], target[channel], factor, line)
    elif operation == 9:
        start, slope = _fixed(0.5 + 0.5 * value), _fixed(value)
        for y in range(height):
            shift = _limited((start + slope * y) >> 16, width)
            for channel in range(channels):
                _move(source[channel, y], target[channel, y], shift, fill[channel])
    elif operation == 10:
        _shear_y(source, target, value, fill, line)
    elif operation == 11:
        shift = _whole(value, width)
        for channel in range(channels):
            for y in range(height):
                _move(source[channel, y], target[channel, y], shift, fill[channel])
    elif operation == 12:
        shift = _whole(value, height) * width
        for channel in range(channels):
            _move(source[channel].reshape(-1), target[channel].reshape(-1), shift, fill[channel])
    else:  # Identity; Color of a grey image; Sharpness of an image that is all border
        _copy(flat, into)


@compiled
def _copy(source: Pixels, target: Pixels) -> None:
    for k in range(source.size):  # compiles in a third of the time of `target[:] = source`
        target[k] = source[k]


@compiled
def _look_up(source: Pixels, target: Pixels, table: Pixels) -> None:
    for k in range(source.size):
        target[k] = table[source[k]]


@compiled
def _auto_contrast(source: Pixels, target: Pixels, table: Pixels) -> None:
    low, high = _U8(255), _U8(0)
    for k in range(source.size):
        low, high = min(low, source[k]), max(high, source[k])
    if low == high:
        _copy(source, target)
        return
    # In Pillow's order, rounded at each step.
    scale = 255.0 / (float(high) - float(low))
    offset = -float(low) * scale
    for level in range(256):
        table[level] = min(max(int(level * scale + offset), 0), 255)
    _look_up(source, target, table)


@compiled
def _equalize(source: Pixels, target: Pixels, table: Pixels, histogram: npt.NDArray[np.int32]) -> None:
    # Four histograms: increments for equal neighbours do not wait for each other.
    for part in range(4):
        for level in range(256):
            histogram[part, level] = 0
    whole = source.size - source.size % 4
    for k in range(0, whole, 4):
        for part in range(4):
            histogram[part, source[k + part]] += 1
    for k in range(whole, source.size):
        histogram[0, source[k]] += 1
    brightest = 0
    for level in range(256):
        for part in range(1, 4):
            histogram[0, level] += histogram[part, level]
        if histogram[0, level] > 0:
            brightest = histogram[0, level]
    step = (source.size - brightest) // 255
    if step == 0:
        _copy(source, target)
        return
    below = step // 2
    for level in range(256):
        table[level] = min(below // step, 255)
        below += histogram[0, level]
    _look_up(source, target, table)


@compiled
def _posterize(source: Pixels, target: Pixels, bits: float) -> None:
    """Clear the lowest bits; `round` takes the even neighbour of a half, as in Python."""
    mask = _U8((255 << round(bits)) & 255)
    for k in range(source.size):
        target[k] = source[k] & mask


@compiled
def _solarize(source: Pixels, target: Pixels, threshold: float) -> None:
    kept = _I32(min(max(math.ceil(threshold), 0), 256))
    for k in range(source.size):
        pixel = _I32(source[k])
        target[k] = pixel if pixel < kept else _I32(255) - pixel


@compiled
def _mixed(pixel: np.float32, degenerate: np.float32, factor: np.float32) -> Any:
    """Blend.c in single precision, truncating. Clipping changes nothing where Pillow does not clip."""
    return _I32(min(max(degenerate + factor * (pixel - degenerate), _F32(0)), _F32(255)))


@compiled
def _blend(source: Pixels, target: Pixels, factor: np.float32, degenerate: np.float32) -> None:
    for k in range(source.size):
        target[k] = _mixed(_F32(source[k]), degenerate, factor)


@compiled
def _grey(red: int, green: int, blue: int) -> Any:
    return (_I32(red) * _I32(19595) + _I32(green) * _I32(38470) + _I32(blue) * _I32(7471) + _I32(32768)) >> _I32(16)


@compiled
def _color(source: Pixels, target: Pixels, factor: np.float32) -> None:
    red, green, blue = source
    for k in range(red.size):
        grey = _F32(_grey(red[k], green[k], blue[k]))
        target[0, k] = _mixed(_F32(red[k]), grey, factor)
        target[1, k] = _mixed(_F32(green[k]), grey, factor)
        target[2, k] = _mixed(_F32(blue[k]), grey, factor)


@compiled
def _mean(source: Pixels) -> Any:
    """The rounded mean of the luminance."""
    channels, height, width = source.shape
    total = np.int64(0)
    if channels == 3:
        red, green, blue = source.reshape(3, -1)
        for k in range(red.size):
            total += _grey(red[k], green[k], blue[k])
    else:
        for pixel in source.flat:
            total += pixel
    return (2 * total + height * width) // (2 * height * width)


@compiled
def _sharpness(source: Pixels, target: Pixels, factor: np.float32, line: npt.NDArray[np.int32]) -> None:
    """Blend with ImageFilter.SMOOTH (1 1 1 / 1 5 1 / 1 1 1 over 13, rounded), which copies the border."""
    height, width = source.shape
    _copy(source[0], target[0])
    _copy(source[height - 1], target[height - 1])
    for y in range(1, height - 1):
        above, row, below, into = source[y - 1], source[y], source[y + 1], target[y]
        for x in range(width):
            line[x] = _I32(above[x]) + _I32(row[x]) + _I32(below[x])
        for x in range(1, width - 1):
            total = line[x - 1] + line[x] + line[x + 1] + _I32(4) * _I32(row[x])
            # 5042 / 65536 is a little more than 1/13; the result is exact for all sums up to 13 * 255.
            smooth = ((total + _I32(6)) * _I32(5042)) >> _I32(16)
            into[x] = _mixed(_F32(row[x]), _F32(smooth), factor)
        into[0], into[width - 1] = row[0], row[width - 1]


@compiled
def _fixed(number: float) -> int:
    """A number in 16.16 fixed point."""
    return math.floor(number * 65536 + 0.5)


@compiled
def _limited(shift: int, side: int) -> int:
    return min(max(shift, -side), side)


@compiled
def _whole(value: float, side: int) -> int:
    """A shift in shares of the side as whole pixels (Geometry.c, ImagingScaleAffine)."""
    return _limited(math.floor(value * side + 0.5), side)


@compiled
def _move(source: Pixels, target: Pixels, shift: int, fill: int) -> None:
    """target[k] = source[k + shift], or the fill colour where that is outside."""
    first, last = max(0, -shift), source.size - max(0, shift)
    for k in range(first):
        target[k] = fill
    for k in range(first, last):
        target[k] = source[_INDEX(k + shift)]
    for k in range(last, source.size):
        target[k] = fill


@compiled
def _rotate(source: Pixels, target: Pixels, degrees: float, fill: Pixels, line: npt.NDArray[np.int32]) -> None:
    """Rotate counter-clockwise about the centre; quarter turns, which Pillow copies, give the same pixels."""
    height, width = source.shape[1:]
    angle = degrees * (-math.pi / 180)
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = width / 2, height / 2
    first_x = _fixed(cosine * -x + sine * -y + x + cosine * 0.5 + sine * 0.5)
    first_y = _fixed(-sine * -x + cosine * -y + y + -sine * 0.5 + cosine * 0.5)
    along_x, along_y = _I32(_fixed(cosine)), _I32(_fixed(-sine))
    for row in range(height):
        at_x, at_y = _I32(first_x + _fixed(sine) * row), _I32(first_y + _fixed(cosine) * row)
        for column in range(width):
            from_x, from_y = at_x >> _I32(16), at_y >> _I32(16)
            inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
            line[column] = from_y * _I32(width) + from_x if inside else _I32(-1)
            at_x, at_y = at_x + along_x, at_y + along_y
        _gather(source, target, row, line, fill)


@compiled
def _shear_y(source: Pixels, target: Pixels, value: float, fill: Pixels, line: npt.NDArray[np.int32]) -> None:
    height, width = source.shape[1:]
    start, slope = _fixed(0.5 + 0.5 * value), _fixed(value)
    for row in range(height):
        for column in range(width):
            from_y = row + _limited((start + slope * column) >> 16, height)
            line[column] = from_y * width + column if 0 <= from_y < height else -1
        _gather(source, target, row, line, fill)


@compiled
def _gather(source: Pixels, target: Pixels, row: int, line: npt.NDArray[np.int32], fill: Pixels) -> None:
    """Fill a row with the pixels at these positions of each channel, with the fill colour where one is negative."""
    for channel in range(len(source)):
        pixels, into, outside = source[channel].reshape(-1), target[channel, row], fill[channel]
        for column in range(len(line)):
            place = line[column]
            # Unsigned, so that numba skips the check for a negative index.
            into[column] = pixels[_INDEX(place)] if place >= 0 else outside
