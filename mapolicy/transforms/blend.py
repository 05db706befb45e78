"""Color, Contrast, Brightness and Sharpness: blend an image with its degenerate version, in place.

The pair of functions serves this family of operations, see `functional.Family`.

Sources: Pillow, ImageEnhance.py; in libImaging Blend.c, Convert.c, Filter.c.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Values = npt.NDArray[np.float64]

# The integers of Convert.c over 65,536. Sums of their products with pixels need 24 bits, so float32 is exact.
_RED, _GREEN, _BLUE = 19595 / 65536, 38470 / 65536, 7471 / 65536
# A little more than 1/13, so that multiples of 13 up to 13 * 255 are not rounded down to the number below.
THIRTEENTH = (1 + 2**-20) / 13


def factors(counts: Sequence[int], value: Values, height: int, width: int) -> npt.NDArray[np.float32]:
    """For all four operations: Pillow's factor, [n]; the value is the factor minus 1."""
    return (1 + value).astype(np.float32)


def blend(images: Tensor, counts: Sequence[int], parameters: Tensor, fill: Tensor) -> None:
    """Blend images in the order Color, Contrast, Brightness, Sharpness, in float32 and truncating, as Blend.c does."""
    pixels = images.float()
    color, contrast, _, sharpness = images.split_with_sizes(counts)
    parts = []
    if len(color):
        parts.append((pixels[: counts[0]], luminance(color)))
    if len(contrast):
        parts.append((pixels[counts[0] : counts[0] + counts[1]], _mean(contrast)))
    if len(sharpness):
        parts.append((pixels[-counts[3] :], smooth(sharpness)))
    # Rounded at each step, as in Blend.c; the fused multiply-add of `lerp` would round differently. Pillow clips only
    # for factors outside [0, 1]; for the others clipping changes nothing. Brightness's degenerate image is black.
    for part, degenerate in parts:
        part.sub_(degenerate)
    pixels.mul_(parameters.view(-1, 1, 1, 1))
    for part, degenerate in parts:
        part.add_(degenerate)
    # Converting float32 to uint8 directly takes three times as long.
    images.copy_(pixels.clamp_(0, 255).to(torch.int16))


def luminance(images: Tensor) -> Tensor:
    """Pillow's mode L of images uint8 [n, C, H, W], as whole numbers in float32 [n, 1, H, W]."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, 1)
    half = torch.full((1, 1, 1, 1), 0.5, device=images.device)
    return torch.add(half, red, alpha=_RED).add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE).floor_()


def _mean(images: Tensor) -> Tensor:
    """The rounded mean of the luminance, float32 [n, 1, 1, 1]."""
    # Sums of rows of fewer than 2^16 pixels are exact in float32, sums of images in float64.
    total = luminance(images).sum(3, keepdim=True).sum(2, keepdim=True, dtype=torch.float64).long()
    area = images.shape[2] * images.shape[3]
    return (total.mul_(2).add_(area) // (2 * area)).float()


def smooth(planes: Tensor) -> Tensor:
    """ImageFilter.SMOOTH (1 1 1 / 1 5 1 / 1 1 1 over 13, rounded) of uint8 [n, C, H, W], in float32.

    The border of one pixel is copied.
    """
    height, width = planes.shape[2:]
    if height < 3 or width < 3:
        return planes.float()
    # The planes as one line: sums that cross an edge are wrong only on the border, which is copied.
    exact = torch.empty(planes.shape, dtype=torch.int16, device=planes.device).copy_(planes).view(-1)
    rows = (exact[:-2] + exact[1:-1]).add_(exact[2:])
    total = (rows[: -2 * width] + rows[width:-width]).add_(rows[2 * width :])
    total.add_(exact[width + 1 : -width - 1], alpha=4).add_(6)
    result = torch.empty(planes.shape, device=planes.device)
    result.view(-1)[width + 1 : -width - 1].copy_(total).mul_(THIRTEENTH).floor_()
    result[:, :, :: height - 1] = planes[:, :, :: height - 1]
    # The last pixel of a row and the first of the next row are neighbours.
    sides, source = (line.view(-1)[width - 1 : -1].view(-1, width)[:, :2] for line in (result, exact))
    sides.copy_(source)
    return result
