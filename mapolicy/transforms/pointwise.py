"""Operations that look at one value at a time: Solarize, Posterize, AutoContrast, Equalize; in place.

Each pair of functions serves one family of operations, as `operations.Family` describes it: the first turns values into
parameters, the second changes images uint8 [n, C, H, W] that lie in the family's order.

Sources: Pillow, ImageOps.py.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Values = npt.NDArray[np.float64]


def thresholds_and_masks(counts: Sequence[int], value: Values, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Of Solarize and Posterize: floor, base and mask, [n, 3].

    A value is inverted where max(value, floor) is not base: above floor = base, or, with floor 1 and base 0, always.
    """
    solarized = counts[0]
    last_kept = np.minimum(np.maximum(np.ceil(value[:solarized]), 0), 256) - 1
    parameters = np.full((len(value), 3), 255, np.uint8)
    parameters[:solarized, 0] = np.where(last_kept < 0, 1, last_kept)
    parameters[:solarized, 1] = np.maximum(last_kept, 0)
    # np.round, like Python's, takes the even neighbour of a half.
    parameters[solarized:, 2] = (255 << np.round(value[solarized:]).astype(np.int64)) & 255
    return parameters


def invert_and_mask(images: Tensor, counts: Sequence[int], parameters: Tensor, fill: Tensor) -> None:
    """Solarize, then Posterize. Arithmetic in uint8: comparing with one number for each image is far slower."""
    floor, base, mask = parameters[..., None, None, None].unbind(1)
    inverted = torch.maximum(images, floor).sub_(base).clamp_(max=1).neg_()
    images.bitwise_xor_(inverted).bitwise_and_(mask)


def look_up_tables(images: Tensor, counts: Sequence[int], parameters: Tensor, fill: Tensor) -> None:
    """AutoContrast, then Equalize: a table of 256 entries for each channel of each image."""
    planes = images.flatten(0, 1).flatten(1)
    parts = planes.split_with_sizes([count * images.shape[1] for count in counts])
    tables = [table(part) for table, part in zip((_stretching, _equalizing), parts, strict=True) if len(part)]
    torch.gather(torch.cat(tables), 1, planes.long(), out=planes)


def _levels(planes: Tensor) -> Tensor:
    return torch.arange(256, dtype=torch.float64, device=planes.device)


def _stretching(planes: Tensor) -> Tensor:
    """AutoContrast's tables, uint8 [n, 256], for planes uint8 [n, H * W]."""
    low, high = planes.amin(1, keepdim=True).double(), planes.amax(1, keepdim=True).double()
    # In Pillow's order and rounded at each step: 255 / tensor would be a product with the reciprocal in torch.
    scale = torch.full_like(high, 255).div_(high - low)
    levels = _levels(planes)
    stretched = (levels * scale).add_(low.neg_().mul_(scale)).clamp_(0, 255)
    # One level alone makes the scale infinite.
    return torch.where(scale.isinf(), levels, stretched).to(torch.uint8)


def _equalizing(planes: Tensor) -> Tensor:
    """Equalize's tables, uint8 [n, 256], for planes uint8 [n, H * W]."""
    histogram = _histogram(planes)
    brightest = histogram.gather(1, planes.amax(1, keepdim=True).long())
    step = (planes.shape[1] - brightest) // 255
    below = (histogram.cumsum(1).sub_(histogram)).add_(step // 2).double()
    # Fewer than 255 pixels below the brightest value: step is 0, and Pillow returns the image. The quotient of whole
    # numbers far below 2^53 cannot be rounded up to the next one. It passes 255 where the step was rounded down by
    # much; Pillow clips it.
    table = below.div_(step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, table, _levels(planes)).to(torch.uint8)


def _histogram(planes: Tensor) -> Tensor:
    """How often each level occurs, int64 [n, 256]."""
    first = torch.arange(0, len(planes) * 256, 256, dtype=torch.int32, device=planes.device)
    positions = planes.int().add_(first[:, None]).view(-1)
    count = _scatter_count if planes.is_cuda else torch.bincount
    return count(positions, minlength=len(planes) * 256).view(-1, 256)


def _scatter_count(positions: Tensor, minlength: int) -> Tensor:
    """torch.bincount for CUDA, where that waits for the device; in one flat list scatter_add_ is deterministic."""
    one = torch.ones((), dtype=torch.int64, device=positions.device).expand(len(positions))
    return torch.zeros(minlength, dtype=torch.int64, device=positions.device).scatter_add_(0, positions.long(), one)
