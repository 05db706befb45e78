"""The 14 operations on a uint8 batch: what comes out equals Pillow's answer for the same image, bit for bit.

Level 0 leaves an image alone, except AutoContrast and Equalize, which have no level, and the enhancers of the space
`autoaugment`, which begin at a factor of 0.1. An input is never modified; images stay uint8 and on their device.

`OPERATIONS` is the one table (name, function, range). The functions come in three kinds: pointwise ones (a mask, or a
table of 256 entries for each image), affine ones (whole rows shifted, or one source position for each pixel), and
blends with a degenerate image. All take images uint8 [n, C, H, W], a value float64 [n] in `space.Range`'s units and a
fill colour uint8 [C].

Sources: the operations of MetaAugment (Zhou et al., AAAI 2021); the arithmetic of Pillow (ImageOps.py,
ImageEnhance.py, Image.rotate, and in libImaging Geometry.c, Blend.c, Convert.c, Filter.c).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .space import DEFAULT_SPACE, MAX_LEVEL, SPACES, OperationSpace, Range

Function = Callable[[Tensor, Tensor, Tensor], Tensor]

CHUNK_VALUES = 2**18  # channel values that an operation takes at once on a CPU: 1 MiB as float32


@dataclass(frozen=True)
class Operation:
    """One image function: images uint8 [n, C, H, W], value float64 [n], fill uint8 [C] -> uint8 [n, C, H, W].

    `range` is the one of the default space; None stands for an operation without a magnitude.
    """

    name: str
    function: Function
    range: Range | None

    @property
    def has_magnitude(self) -> bool:
        """Whether the level changes what the operation does."""
        return self.range is not None

    @property
    def signed(self) -> bool:
        """Whether the magnitude's sign gives a direction (in the default space)."""
        return self.range is not None and self.range.signed


def apply_operation(
    images: Tensor,
    index: Tensor,
    magnitude: Tensor,
    space: str | OperationSpace = DEFAULT_SPACE,
    fill: Tensor | None = None,
) -> Tensor:
    """Apply to each image its own operation at its own magnitude.

    Args:
        images: uint8 [B, C, H, W] with C = 3 (RGB) or 1 (grey); not modified.
        index: int64 [B], which of the space's operations.
        magnitude: floating point [B]; its absolute value is the level in [0, 10], its sign the direction for the
            operations that are signed in the space. Ignored (but checked) for operations without a magnitude. The
            operation's value is computed from it in float64.
        space: a name in `space.SPACES`, or a space.
        fill: uint8 [C], the colour of pixels that come from outside the image; None is black.

    Returns:
        uint8 [B, C, H, W], a new tensor.

    Raises:
        ValueError: a wrong dtype, shape, device or number of channels, an index or level out of range, or a space that
            is not known or names an operation that is not.
    """
    space = _resolve(space)
    fill = torch.zeros(images.shape[1:2], dtype=torch.uint8, device=images.device) if fill is None else fill
    _check_tensors(images, index, magnitude, fill)
    counts = _count(index, magnitude, space)
    # Sorted by operation, each operation's images lie together: two copies of whole images, and none in between.
    order = index.argsort(stable=True)
    source, magnitude = images.index_select(0, order), magnitude.double().index_select(0, order)
    result = torch.empty_like(source)
    start = 0
    for (name, spread), count in zip(space.ranges.items(), counts, strict=True):
        for rows in _chunks(start, start + count, images):
            result[rows] = _FUNCTIONS[name](source[rows], _value(spread, magnitude[rows]), fill)
        start += count
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return result.index_select(0, place)


def _chunks(start: int, stop: int, images: Tensor) -> list[slice]:
    """Images start to stop in parts whose float copies stay in a CPU's cache; on a GPU in one part."""
    if images.is_cuda:
        return [slice(start, stop)] if stop > start else []
    size = max(1, CHUNK_VALUES // images.shape[1:].numel())
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def _value(spread: Range | None, magnitude: Tensor) -> Tensor:
    """Magnitude float64 [n] -> value float64 [n] in the range's units."""
    if spread is None:
        return torch.zeros_like(magnitude)
    # A tensor as the divisor: by a number, torch multiplies with the reciprocal on CUDA, which rounds twice.
    ten = magnitude.new_full((), MAX_LEVEL)
    value = spread.at_zero + (spread.at_ten - spread.at_zero) * magnitude.abs() / ten
    return torch.where(magnitude < 0, -value, value) if spread.signed else value


def _resolve(space: str | OperationSpace) -> OperationSpace:
    if isinstance(space, str):
        if space not in SPACES:
            raise ValueError(f"space is {space!r}; expected one of {', '.join(SPACES)}, or an OperationSpace")
        space = SPACES[space]
    if unknown := [name for name in space.names if name not in _FUNCTIONS]:
        raise ValueError(f"space {space.name} names {', '.join(unknown)}; expected only {', '.join(_FUNCTIONS)}")
    return space


def _check_tensors(images: Tensor, index: Tensor, magnitude: Tensor, fill: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(f"images is {_describe(images)}; expected torch.uint8 [B, C, H, W] with C = 1 or 3")
    batch, channels = images.shape[:2]
    if index.dtype != torch.int64 or index.shape != (batch,):
        raise ValueError(f"index is {_describe(index)}; expected torch.int64 [{batch}], one for each image")
    if not magnitude.is_floating_point() or magnitude.shape != (batch,):
        raise ValueError(f"magnitude is {_describe(magnitude)}; expected floating point [{batch}], one for each image")
    if fill.dtype != torch.uint8 or fill.shape != (channels,):
        raise ValueError(f"fill is {_describe(fill)}; expected torch.uint8 [{channels}], one for each channel")
    for name, tensor in {"index": index, "magnitude": magnitude, "fill": fill}.items():
        if tensor.device != images.device:
            raise ValueError(f"{name} is on {tensor.device} and images on {images.device}; move one to the other")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _count(index: Tensor, magnitude: Tensor, space: OperationSpace) -> list[int]:
    """Images for each operation. Checks the values as well, so that a GPU is waited for once, here."""
    numbers = torch.arange(len(space.ranges), device=index.device)
    allowed = magnitude.abs() <= MAX_LEVEL  # false for NaN
    *counts, levels = torch.cat([(index == numbers[:, None]).sum(1), allowed.sum()[None]]).tolist()
    if sum(counts) != len(index):
        raise ValueError(
            f"index holds {index.min().item()} to {index.max().item()}; expected 0 to {len(counts) - 1}, "
            f"the positions of the operations of space {space.name}"
        )
    if levels != len(index):
        raise ValueError(
            f"magnitude holds {magnitude[~allowed][0].item():.9g}; expected a level of 0 to {MAX_LEVEL:g}, "
            "with a sign for its direction"
        )
    return counts


# Pointwise operations: a table of 256 entries for each image, or for each of its channels.


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replace each pixel by its entry in the image's table, uint8 [n, C or 1, 256]."""
    tables = table.expand(-1, images.shape[1], -1)
    return tables.gather(2, images.flatten(2).long()).view(images.shape)


def _pixel_values(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device)


def _auto_contrast(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    pixels = images.flatten(2)
    low, high = pixels.amin(2, keepdim=True).double(), pixels.amax(2, keepdim=True).double()
    # In Pillow's order and rounded at each step: 255 / tensor would be a product with the reciprocal in torch.
    scale = torch.full_like(high, 255) / (high - low)
    stretched = (_pixel_values(images) * scale + -low * scale).clamp(0, 255)
    return _look_up(images, torch.where(high > low, stretched, _pixel_values(images)).to(torch.uint8))


def _equalize(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    # Counting by position in one flat list keeps scatter_add_ deterministic on CUDA.
    n, channels, *_ = images.shape
    first = torch.arange(n * channels, device=images.device).mul_(256).view(n, channels, 1)
    positions = (images.flatten(2) + first).flatten()
    one = torch.ones((), dtype=torch.int64, device=images.device).expand(len(positions))
    histogram = torch.zeros(n * channels * 256, dtype=torch.int64, device=images.device)
    histogram = histogram.scatter_add_(0, positions, one).view(n, channels, 256)
    # The brightest value that occurs is the last bin that is not empty.
    brightest = 255 - histogram.flip(2).ne(0).to(torch.uint8).argmax(2, keepdim=True)
    step = (images[0, 0].numel() - histogram.gather(2, brightest)) // 255
    below = histogram.cumsum(2) - histogram
    # Fewer than 255 pixels below the brightest value: step is 0, and Pillow returns the image. The quotient passes 255
    # where the step was rounded down by much; Pillow clips it.
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, _pixel_values(images)).to(torch.uint8)
    return table.view(-1).index_select(0, positions).view(images.shape)


def _posterize(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    # torch.round, like Python's, takes the even neighbour of a half.
    dropped = value.round().to(torch.int64)
    return images & (255 << dropped & 255).to(torch.uint8).view(-1, 1, 1, 1)


def _solarize(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    pixels = _pixel_values(images)
    kept = pixels < value.view(-1, 1, 1)
    return _look_up(images, torch.where(kept, pixels, 255 - pixels).to(torch.uint8))


def _identity(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    return images


# Affine operations: nearest pixel, positions in Pillow's own arithmetic, Geometry.c, affine_fixed: 16.16 fixed point,
# from the centre of the first pixel, for sides that add up to less than 16,384. A matrix that only scales takes another
# way in Pillow; the ones that Rotate and the shears can build then give the same pixels both ways.


def _fixed(number: Tensor) -> Tensor:
    """float64 to 16.16 fixed point, int64."""
    return (number * 65536 + 0.5).floor().long()


def _windows(padded: Tensor, start: Tensor, length: int) -> Tensor:
    """`length` values of the flat buffer from each of the starts [m]: uint8 [m, length]."""
    windows = padded.view(-1).as_strided((padded.numel() - length + 1, length), (1, 1))
    return windows.index_select(0, start)


def _shift_rows(images: Tensor, shift: Tensor, fill: Tensor) -> Tensor:
    """Row y's pixel x comes from column x + shift[n, y], int64 [n, H]; the fill colour where that is outside."""
    n, channels, height, width = images.shape
    padded = fill[:, None, None].expand(n, channels, height, 3 * width).contiguous()
    padded[..., width : 2 * width] = images
    rows = torch.arange(n * channels * height, device=images.device).view(n, channels, height)
    start = rows * (3 * width) + width + shift.clamp(-width, width)[:, None]
    return _windows(padded, start.flatten(), width).view(images.shape)


def _shear_x(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    rows = torch.arange(images.shape[2], device=images.device)
    shift = (_fixed(0.5 + 0.5 * value)[:, None] + _fixed(value)[:, None] * rows) >> 16
    return _shift_rows(images, shift, fill)


def _shear_y(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    return _shear_x(images.transpose(2, 3).contiguous(), value, fill).transpose(2, 3)


def _shift(value: Tensor, side: int) -> Tensor:
    """Whole pixels int64 [n] of shifts float64 [n] in shares of the side: Geometry.c, ImagingScaleAffine."""
    # Pillow adds 1 for each pixel in double precision; from that this differs by rounding alone, 1e-13 pixels.
    return (value * side + 0.5).floor().long()


def _translate_x(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    return _shift_rows(images, _shift(value, images.shape[3])[:, None].expand(-1, images.shape[2]), fill)


def _translate_y(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    # A whole image is one long row, shifted by whole lines.
    lines = images.flatten(2)[:, :, None]
    return _shift_rows(lines, (_shift(value, images.shape[2]) * images.shape[3])[:, None], fill).view(images.shape)


def _rotate(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    # Image.rotate: counter-clockwise about the centre. It turns quarters by copying and rounds the coefficients to 15
    # digits; neither is seen after rounding them to 16 bits.
    height, width = images.shape[2:]
    angle = value * (-math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    shift_x = cosine * -x + sine * -y + x
    shift_y = -sine * -x + cosine * -y + y
    columns = torch.arange(width, device=images.device, dtype=torch.int32)
    rows = torch.arange(height, device=images.device, dtype=torch.int32)[:, None]

    def source(per_column: Tensor, per_row: Tensor, shift: Tensor, side: int) -> Tensor:
        """Where each pixel comes from along one axis, int32 [n, H, W], from -1 to `side`, which are outside."""
        offset = _fixed(shift + per_column * 0.5 + per_row * 0.5)
        first, down, across = (number.int()[:, None, None] for number in (offset, _fixed(per_row), _fixed(per_column)))
        return ((first + down * rows) + across * columns).bitwise_right_shift_(16).clamp_(-1, side)

    from_x = source(cosine, sine, shift_x, width)
    from_y = source(-sine, cosine, shift_y, height)
    # A border of the fill colour stands for everything outside.
    padded = fill[:, None, None].expand(*images.shape[:2], height + 2, width + 2).contiguous()
    padded[..., 1:-1, 1:-1] = images
    place = from_y.mul_(width + 2).add_(from_x).add_(width + 3).flatten(1).long()
    return padded.flatten(2).gather(2, place[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


# Enhancers: blends with a degenerate image. The value is the factor less 1.


def _blend(degenerate: Tensor, images: Tensor, value: Tensor) -> Tensor:
    """Both float32, `images` [n, ...] is overwritten; Blend.c in single precision, truncating."""
    # A fused multiply-add, lerp's for one, would round differently. Where the factor is 0 or 1, or between, nothing
    # needs clipping and Pillow's three cases are one.
    factor = (1 + value).float().view(-1, 1, 1, 1)
    return images.sub_(degenerate).mul_(factor).add_(degenerate).clamp_(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    """Luminance, whole numbers in float32 [n, 1, H, W], of float32 [n, C, H, W]; a grey image is its own."""
    if pixels.shape[1] == 1:
        return pixels.clone()
    # Convert.c's integers: the sum stays below 2^24, so that float32 holds it exactly.
    weighted = pixels[:, :1] * 19595
    return weighted.add_(pixels[:, 1:2], alpha=38470).add_(pixels[:, 2:], alpha=7471).add_(0x8000).div_(65536).floor_()


def _color(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    pixels = images.float()
    return _blend(_grey(pixels), pixels, value)


def _blend_with_constant(images: Tensor, constant: Tensor, value: Tensor) -> Tensor:
    """Blend with one grey level for each image, float32 [n, 1, 1, 1]."""
    pixels = _pixel_values(images).float().expand(len(images), 1, 1, 256).clone()
    return _look_up(images, _blend(constant, pixels, value)[:, 0])


def _contrast(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    grey = _grey(images.float())
    pixels = grey[0].numel()
    mean = (2 * grey.sum((1, 2, 3), keepdim=True, dtype=torch.float64).long() + pixels) // (2 * pixels)
    return _blend_with_constant(images, mean.float(), value)


def _brightness(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    return _blend_with_constant(images, torch.zeros_like(value, dtype=torch.float32).view(-1, 1, 1, 1), value)


def _sharpness(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    # ImageFilter.SMOOTH, 1 1 1 / 1 5 1 / 1 1 1 over 13 and rounded; the border is copied. Half a unit keeps the
    # quotient away from whole numbers, so that float32 rounds it down as integers would.
    exact = images.to(torch.int16)
    rows = exact[:, :, :-2] + exact[:, :, 1:-1]
    rows += exact[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1]
    total += rows[..., 2:]
    total.add_(exact[:, :, 1:-1, 1:-1], alpha=4)
    pixels = images.float()
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = total.float().add_(6.5).mul_(1 / 13).floor_()
    return _blend(smooth, pixels, value)


_FUNCTIONS: Mapping[str, Function] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Identity": _identity,
}

OPERATIONS: tuple[Operation, ...] = tuple(
    Operation(name, _FUNCTIONS[name], spread) for name, spread in SPACES[DEFAULT_SPACE].ranges.items()
)
