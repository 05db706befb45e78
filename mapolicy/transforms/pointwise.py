"""Operations on each pixel's value alone: Solarize, Posterize, AutoContrast, Equalize; in place.

Each pair of functions serves one family of operations, see `functional.Family`: the first turns values into parameters,
the second changes images uint8 [n, C, H, W] that are sorted by operation.

Sources: Pillow, ImageOps.py.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Values = npt.NDArray[np.float64]


def thresholds_and_masks(counts: Sequence[int], value: Values, height: int, width: int) -> npt.NDArray[np.uint8]:
    """For Solarize and Posterize: floor, base and mask, [n, 3].

    A pixel is inverted where max(pixel, floor) != base: with floor = base every pixel above the base, with floor 1 and
    base 0 every pixel. Afterwards the mask clears the bits that Posterize drops.
    """
    solarized = counts[0]
    last_kept = np.minimum(np.maximum(np.ceil(value[:solarized]), 0), 256) - 1
    parameters = np.full((len(value), 3), 255, np.uint8)
    parameters[:solarized, 0] = np.where(last_kept < 0, 1, last_kept)
    parameters[:solarized, 1] = np.maximum(last_kept, 0)
    # np.round rounds a half to the even neighbour, as Python does.
    parameters[solarized:, 2] = (255 << np.round(value[solarized:]).astype(np.int64)) & 255
    return parameters


def invert_and_mask(images: Tensor, counts: Sequence[int], parameters: Tensor, fill: Tensor) -> None:
    """Solarize and Posterize. In uint8 arithmetic, which is much faster than comparing with a number for each image."""
    floor, base, mask = parameters[..., None, None, None].unbind(1)
    inverted = torch.maximum(images, floor).sub_(base).clamp_(max=1).neg_()
    images.bitwise_xor_(inverted).bitwise_and_(mask)


def look_up_tables(images: Tensor, counts: Sequence[int], parameters: Tensor, fill: Tensor) -> None:
    """AutoContrast and Equalize, by a table of 256 entries for each channel of each image."""
    planes = images.flatten(0, 1).flatten(1)
    parts = planes.split_with_sizes([count * images.shape[1] for count in counts])
    tables = [table(part) for table, part in zip((stretch_tables, _equalize_tables), parts, strict=True) if len(part)]
    torch.gather(torch.cat(tables), 1, planes.long(), out=planes)


def _levels(planes: Tensor) -> Tensor:
    return torch.arange(256, dtype=torch.float64, device=planes.device)


def stretch_tables(planes: Tensor) -> Tensor:
    """Tables of AutoContrast, uint8 [n, 256], for planes uint8 [n, H * W]."""
    low, high = planes.amin(1, keepdim=True).double(), planes.amax(1, keepdim=True).double()
    # In Pillow's order, rounded at each step: torch would compute 255 / tensor as a product with the reciprocal.
    scale = torch.full_like(high, 255).div_(high - low)
    levels = _levels(planes)
    stretched = (levels * scale).add_(low.neg_().mul_(scale)).clamp_(0, 255)
    # A plane of a single level has an infinite scale.
    return torch.where(scale.isinf(), levels, stretched).to(torch.uint8)


def _equalize_tables(planes: Tensor) -> Tensor:
    """Tables of Equalize, uint8 [n, 256], for planes uint8 [n, H * W]."""
    histogram = histograms(planes)
    brightest = histogram.gather(1, planes.amax(1, keepdim=True).long())
    step = (planes.shape[1] - brightest) // 255
    below = (histogram.cumsum(1).sub_(histogram)).add_(step // 2).double()
    # With fewer than 255 pixels below the brightest value the step is 0, and Pillow returns the image. Floating-point
    # division cannot round these small integers up to the next one. Pillow clips quotients above 255, which occur where
    # the step was rounded down.
    table = below.div_(step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, table, _levels(planes)).to(torch.uint8)


def histograms(planes: Tensor) -> Tensor:
    """How often each level occurs in each of n planes uint8 [n, H * W], int64 [n, 256]."""
    first = torch.arange(0, len(planes) * 256, 256, dtype=torch.int32, device=planes.device)
    positions = planes.int().add_(first[:, None]).view(-1)
    count = scatter_count if planes.is_cuda else torch.bincount
    return count(positions, minlength=len(planes) * 256).view(-1, 256)


def scatter_count(positions: Tensor, minlength: int) -> Tensor:
    """`torch.bincount` for CUDA, which would wait for the device; 1-D `scatter_add_` is deterministic there."""
    one = torch.ones((), dtype=torch.int64, device=positions.device).expand(len(positions))
    return torch.zeros(minlength, dtype=torch.int64, device=positions.device).scatter_add_(0, positions.long(), one)
