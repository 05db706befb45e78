"""The 14 operations on a uint8 batch: what comes out equals Pillow's answer for the same image, bit for bit.

Level 0 leaves an image alone, except AutoContrast and Equalize, which have no level, and the enhancers of the space
`autoaugment`, which begin at a factor of 0.1. An input is never modified; images stay uint8 and on their device.

`OPERATIONS` is the one table (name, function, range). The functions come in three kinds: pointwise ones (a mask, or a
table of 256 entries for each image), affine ones (one source position for each pixel), and blends with a degenerate
image. All take images uint8 [n, C, H, W], a value float64 [n] in `space.Range`'s units and a fill colour uint8 [C].

Sources: the operations of MetaAugment (Zhou et al., AAAI 2021); the arithmetic of Pillow (ImageOps.py,
ImageEnhance.py, Image.rotate, and in libImaging Geometry.c, Blend.c, Convert.c, Filter.c).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .space import DEFAULT_SPACE, MAX_LEVEL, SPACES, OperationSpace, Range

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


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
    magnitude = magnitude.double()
    result = torch.empty_like(images)
    for (name, spread), rows in zip(space.ranges.items(), torch.split(index.argsort(stable=True), counts), strict=True):
        if len(rows):
            result[rows] = _FUNCTIONS[name](images[rows], _value(spread, magnitude[rows]), fill)
    return result


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


# Pointwise operations.


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replace each pixel by its entry in the image's table, uint8 [n, C or 1, 256]."""
    tables = table.expand(-1, images.shape[1], -1)
    return tables.gather(2, images.flatten(2).long()).reshape(images.shape)


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
    first = torch.arange(n * channels, device=images.device).mul(256).view(n, channels, 1)
    positions = (images.flatten(2) + first).flatten()
    histogram = torch.zeros(n * channels * 256, dtype=torch.int64, device=images.device)
    histogram = histogram.scatter_add_(0, positions, torch.ones_like(positions)).view(n, channels, 256)
    brightest = images.flatten(2).amax(2, keepdim=True).long()
    step = (images[0, 0].numel() - histogram.gather(2, brightest)) // 255
    below = histogram.cumsum(2) - histogram
    # Fewer than 255 pixels below the brightest value: step is 0, and Pillow returns the image. The quotient passes 255
    # where the step was rounded down by much; Pillow clips it.
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return _look_up(images, torch.where(step > 0, table, _pixel_values(images)).to(torch.uint8))


def _posterize(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    # torch.round, like Python's, takes the even neighbour of a half.
    dropped = value.round().to(torch.uint8).view(-1, 1, 1, 1)
    return images >> dropped << dropped


def _solarize(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    # A whole number is below a threshold exactly where it is below the threshold rounded up.
    threshold = value.ceil().to(torch.int16).view(-1, 1, 1, 1)
    return torch.where(images < threshold, images, ~images)


def _identity(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    return images


def _pixel_values(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device)


# Affine operations: nearest pixel, positions in Pillow's own arithmetic.


def _nearest(images: Tensor, x: Tensor, y: Tensor, fill: Tensor) -> Tensor:
    """Pixels at columns x and rows y, int64, together [n, H, W]; the fill colour where they are outside."""
    height, width = images.shape[2:]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    source = torch.where(inside, y * width + x, 0).flatten(1)
    pixels = images.flatten(2).gather(2, source[:, None].expand(-1, images.shape[1], -1)).reshape(images.shape)
    return torch.where(inside[:, None], pixels, fill[:, None, None])


def _affine(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Output pixel (x, y) comes from matrix float64 [n, 2, 3] @ (x, y, 1), sides added up to less than 32,768.

    Geometry.c, affine_fixed: 16.16 fixed point, from the centre of the first pixel. A matrix that only scales takes
    another way in Pillow; the ones that Rotate and the shears can build then give the same pixels both ways.
    """
    start = matrix[:, :, 2] + matrix[:, :, 0] * 0.5 + matrix[:, :, 1] * 0.5
    steps = torch.cat([matrix[:, :, :2], start[:, :, None]], dim=2)
    per_column, per_row, offset = (steps * 65536 + 0.5).floor().long()[:, :, :, None, None].unbind(2)
    columns = torch.arange(images.shape[3], device=images.device)
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    x, y = ((offset + per_row * rows + per_column * columns) >> 16).unbind(1)
    return _nearest(images, x, y, fill)


def _rotate(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    # Image.rotate: counter-clockwise about the centre. It turns quarters by copying and rounds the coefficients to 15
    # digits; neither is seen after rounding them to 16 bits in _affine.
    angle = value * (-math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    x, y = images.shape[3] / 2, images.shape[2] / 2
    shift_x = cosine * -x + sine * -y + x
    shift_y = -sine * -x + cosine * -y + y
    matrix = torch.stack([cosine, sine, shift_x, -sine, cosine, shift_y], dim=1)
    return _affine(images, matrix.view(-1, 2, 3), fill)


def _shear(row: int, images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    matrix = torch.eye(2, 3, dtype=value.dtype, device=value.device).repeat(len(value), 1, 1)
    matrix[:, row, 1 - row] = value
    return _affine(images, matrix, fill)


def _moved(value: Tensor, side: int) -> Tensor:
    """Where each of `side` pixels comes from, int64 [n, side], for shifts float64 [n] in shares of the side."""
    # Geometry.c, ImagingScaleAffine, adds 1 again and again in double precision; one addition differs from that by
    # rounding alone, 1e-13 pixels, and is the same on every device.
    start = value * side + 0.5
    return (start[:, None] + torch.arange(side, device=value.device)).floor().long()


def _translate_x(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    return _nearest(images, _moved(value, images.shape[3])[:, None, :], rows, fill)


def _translate_y(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    columns = torch.arange(images.shape[3], device=images.device)
    return _nearest(images, columns, _moved(value, images.shape[2])[:, :, None], fill)


# Enhancers: blends with a degenerate image. The value is the factor less 1.


def _blend(degenerate: Tensor, images: Tensor, value: Tensor) -> Tensor:
    # Blend.c in single precision, truncating. A fused multiply-add, lerp's for one, would round differently. Where the
    # factor is 0 or 1, or between, nothing needs clipping and Pillow's three cases are one.
    factor = (1 + value).float().view(-1, 1, 1, 1)
    base = degenerate.float()
    return (base + factor * (images.float() - base)).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luminance int32 [n, 1, H, W] in Convert.c's integers; a grey image is its own."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None]


def _color(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    return _blend(_grey(images), images, value)


def _contrast(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    grey = _grey(images)
    pixels = grey[0].numel()
    mean = (2 * grey.sum((1, 2, 3), keepdim=True) + pixels) // (2 * pixels)
    return _blend(mean, images, value)


def _brightness(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images[:, :1, :1, :1]), images, value)


def _sharpness(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    # ImageFilter.SMOOTH, 1 1 1 / 1 5 1 / 1 1 1 over 13 and rounded; the border is copied.
    exact = images.to(torch.int16)
    rows = exact[:, :, :-2] + exact[:, :, 1:-1] + exact[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * exact[:, :, 1:-1, 1:-1]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = ((total + 6) // 13).to(torch.uint8)
    return _blend(smooth, images, value)


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
    "ShearX": partial(_shear, 0),
    "ShearY": partial(_shear, 1),
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Identity": _identity,
}

OPERATIONS: tuple[Operation, ...] = tuple(
    Operation(name, _FUNCTIONS[name], spread) for name, spread in SPACES[DEFAULT_SPACE].ranges.items()
)
