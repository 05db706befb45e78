"""The enhancers Color, Contrast, Brightness, Sharpness: blends of an image with its degenerate; in place.

The pair of functions serves the family, as `operations.Family` describes it.

Sources: Pillow, ImageEnhance.py; in libImaging Blend.c, Convert.c, Filter.c.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Values = npt.NDArray[np.float64]

# Convert.c's integers over 65,536. Sums of their products with pixels need 24 bits, so that float32 holds them exactly.
_RED, _GREEN, _BLUE = 19595 / 65536, 38470 / 65536, 7471 / 65536
# A little more than 1/13: whole multiples of 13 up to 13 * 255 stay whole numbers when multiplied and rounded down.
_THIRTEENTH = (1 + 2**-20) / 13


def factors(counts: Sequence[int], value: Values, height: int, width: int) -> npt.NDArray[np.float32]:
    """Of all four: the factor, [n]; the value is the factor less 1."""
    return (1 + value).astype(np.float32)


def blend(images: Tensor, counts: Sequence[int], parameters: Tensor, fill: Tensor) -> None:
    """Color, Contrast, Brightness, then Sharpness; Blend.c in single precision, truncating."""
    pixels = images.float()
    color, contrast, _, sharpness = images.split_with_sizes(counts)
    parts = []
    if len(color):
        parts.append((pixels[: counts[0]], _grey(color)))
    if len(contrast):
        parts.append((pixels[counts[0] : counts[0] + counts[1]], _mean(contrast)))
    if len(sharpness):
        parts.append((pixels[-counts[3] :], _smooth(sharpness)))
    # Rounded at each step, as in Blend.c: a fused multiply-add, lerp's for one, would round differently. Where the
    # factor is 0 or 1, or between, nothing needs clipping and Pillow's three cases are one. Brightness's degenerate is
    # black.
    for part, degenerate in parts:
        part.sub_(degenerate)
    pixels.mul_(parameters.view(-1, 1, 1, 1))
    for part, degenerate in parts:
        part.add_(degenerate)
    # From float32 straight to uint8 takes three times as long.
    images.copy_(pixels.clamp_(0, 255).to(torch.int16))


def _grey(images: Tensor) -> Tensor:
    """Luminance, whole numbers in float32 [n, 1, H, W], of uint8 [n, C, H, W]; a grey image is its own."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, 1)
    half = torch.full((1, 1, 1, 1), 0.5, device=images.device)
    return torch.add(half, red, alpha=_RED).add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE).floor_()


def _mean(images: Tensor) -> Tensor:
    """The luminance's mean, rounded, float32 [n, 1, 1, 1]."""
    # Rows of fewer than 2^16 pixels have exact sums in float32, images in float64.
    total = _grey(images).sum(3, keepdim=True).sum(2, keepdim=True, dtype=torch.float64).long()
    area = images.shape[2] * images.shape[3]
    return (total.mul_(2).add_(area) // (2 * area)).float()


def _smooth(planes: Tensor) -> Tensor:
    """ImageFilter.SMOOTH, 1 1 1 / 1 5 1 / 1 1 1 over 13 and rounded, float32, of uint8; the border is copied."""
    height, width = planes.shape[2:]
    if height < 3 or width < 3:
        return planes.float()
    # The planes as one line: sums that reach over an edge are wrong on the border alone.
    exact = torch.empty(planes.shape, dtype=torch.int16, device=planes.device).copy_(planes).view(-1)
    rows = (exact[:-2] + exact[1:-1]).add_(exact[2:])
    total = (rows[: -2 * width] + rows[width:-width]).add_(rows[2 * width :])
    total.add_(exact[width + 1 : -width - 1], alpha=4).add_(6)
    smooth = torch.empty(planes.shape, device=planes.device)
    smooth.view(-1)[width + 1 : -width - 1].copy_(total).mul_(_THIRTEENTH).floor_()
    smooth[:, :, :: height - 1] = planes[:, :, :: height - 1]
    # A row's last pixel and the next row's first lie side by side.
    sides, source = (line.view(-1)[width - 1 : -1].view(-1, width)[:, :2] for line in (smooth, exact))
    sides.copy_(source)
    return smooth
