"""The operations on a uint8 batch. The 14 built-in ones give Pillow's answer for the same image, bit for bit.

Level 0 leaves an image alone, except AutoContrast and Equalize, which have no level, and the enhancers of the space
`autoaugment`, which begin at a factor of 0.1. An input is never modified; images stay uint8 and on their device.

`OPERATIONS` is the table of the 14 (name, function, range); `space.OPERATION_SPECS` also has the registered ones. On a
CPU, compiled loops take one image after the other through all of its operations (`cpu_kernels`). Elsewhere torch does
the work for the batch: operations that share their arithmetic are a family, images are sorted by family and operation,
and a family changes its images together, some at a time. A registered operation gets its images of a step at once.

Sources: the operations of MetaAugment (Zhou et al., AAAI 2021); the arithmetic of Pillow, in `kernels`, and in
`pointwise`, `blend` and `affine`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..runtime.threads import images_in_ranges
from . import affine, blend, pointwise
from .space import (
    DEFAULT_SPACE,
    MAX_LEVEL,
    OPERATION_NAMES,
    OPERATION_SPECS,
    OperationSpace,
    Range,
    default_ranges,
    resolve_space,
)

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
Values = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

COMPILED = frozenset({"cpu"})  # types of device whose images `kernels` change

# Channel values that a family takes at once. On a CPU, few enough for its caches, and enough to make a call's own cost
# small; on a GPU, few beside its memory.
CPU_CHUNK, GPU_CHUNK = 2**18, 2**24


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


@dataclass(frozen=True)
class Family:
    """Operations with shared arithmetic, on images uint8 [n, C, H, W] sorted by operation, so many of each.

    `prepare` gets those counts, values float64 [n] in `space.Range`'s units, H and W, and returns the parameters, an
    array [n, ...]. `change` gets images, their counts, their parameters on the images' device and a fill colour
    uint8 [C], and overwrites the images.
    """

    names: tuple[str, ...]
    prepare: Callable[[Sequence[int], Values, int, int], npt.NDArray[Any]] | None
    change: Callable[[Tensor, Sequence[int], Tensor, Tensor], None] | None

    def parameters(self, counts: Sequence[int], value: Values, images: Tensor) -> Tensor:
        """What `prepare` returns, as a tensor where the images are."""
        if self.prepare is None:
            return torch.empty(len(value), 0, device=images.device)
        return torch.from_numpy(self.prepare(counts, value, *images.shape[2:])).to(images.device, non_blocking=True)


_FAMILIES = (
    Family(("Identity",), None, None),
    Family(("Solarize", "Posterize"), pointwise.thresholds_and_masks, pointwise.invert_and_mask),
    Family(("AutoContrast", "Equalize"), None, pointwise.look_up_tables),
    Family(("Color", "Contrast", "Brightness", "Sharpness"), blend.factors, blend.blend),
    Family(("ShearX", "TranslateX", "TranslateY"), affine.row_starts, affine.move_rows),
    Family(("Rotate", "ShearY"), affine.coordinates, affine.gather_pixels),
)

_RANKS = {name: rank for rank, name in enumerate(name for family in _FAMILIES for name in family.names)}


def _function(name: str) -> Function:
    """One of the operations alone, of the form that `Operation` has."""

    def alone(images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
        values = value.double().cpu().numpy()[None]
        return _apply(images, np.full(values.shape, OPERATION_NAMES.index(name)), values, fill)

    return alone


OPERATIONS: tuple[Operation, ...] = tuple(
    Operation(name, _function(name), spread) for name, spread in default_ranges(OPERATION_NAMES).items()
)


def operation_function(name: str) -> Function:
    """The code of an operation, one of the 14 or a registered one, of the form that `Operation.function` has.

    Raises:
        UsageError: the operation is not registered.
    """
    spec = OPERATION_SPECS.find(name)
    if spec.function is None:
        return OPERATIONS[OPERATION_NAMES.index(name)].function
    return partial(_apply_registered, name)


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
    return apply_operations(images, [(index, magnitude)], space, fill)


def apply_operations(
    images: Tensor,
    steps: Sequence[tuple[Tensor, Tensor]],
    space: str | OperationSpace = DEFAULT_SPACE,
    fill: Tensor | None = None,
) -> Tensor:
    """`apply_operation` with each pair of index and magnitude in turn, in fewer copies; waits for a GPU once."""
    space = resolve_space(space)
    fill = torch.zeros(images.shape[1:2], dtype=torch.uint8, device=images.device) if fill is None else fill
    for index, magnitude in steps:
        _check_tensors(images, index, magnitude, fill)
    # What there is of each image but its pixels is left to numpy: short arrays cost it a fraction of what they cost
    # torch, a GPU is waited for once, here, and its results are the CPU's.
    numbers = torch.stack([numbers.detach().double() for step in steps for numbers in step]).cpu().numpy()
    entry, value = _look_up(numbers[::2], numbers[1::2], space)
    position = np.array([OPERATION_NAMES.index(name) if name in _RANKS else -1 for name in space.names], np.int64)
    operation = position[entry]
    if (operation >= 0).all():
        return _apply(images, operation, value, fill)
    return _apply_mixed(images, entry, operation, value, space, fill)


def _apply_mixed(
    images: Tensor, entry: Numbers, operation: Numbers, value: Values, space: OperationSpace, fill: Tensor
) -> Tensor:
    """`_apply` where some of the operations are registered ones: one step after the other for their images.

    Args:
        entry: positions in the space, [steps, B].
        operation: positions in `OPERATION_NAMES`, -1 for a registered operation, [steps, B].
    """
    result = torch.empty_like(images)

    def rows(mask: Any) -> tuple[Numbers, Tensor]:
        found = np.flatnonzero(mask)
        return found, torch.from_numpy(found).to(images.device)

    plain = (operation >= 0).all(0)
    here, where = rows(plain)
    if len(here):
        result[where] = _apply(images[where], operation[:, here], value[:, here], fill)
    here, where = rows(~plain)
    result[where] = images[where]
    for step in range(len(entry)):
        here, where = rows(~plain & (operation[step] >= 0))
        if len(here):
            result[where] = _apply(result[where], operation[step : step + 1, here], value[step : step + 1, here], fill)
        for number in np.unique(entry[step][operation[step] < 0]).tolist():
            here, where = rows(entry[step] == number)
            values = torch.from_numpy(value[step, here]).to(images.device)
            result[where] = _apply_registered(space.names[number], result[where], values, fill)
    return result


def _apply_registered(name: str, images: Tensor, value: Tensor, fill: Tensor) -> Tensor:
    """A registered operation, whose answer is checked."""
    spec = OPERATION_SPECS.find(name)
    function = spec.function if spec.cpu_function is None or images.device.type != "cpu" else spec.cpu_function
    assert function is not None
    result = function(images, value, fill)
    if not isinstance(result, Tensor) or result.dtype != torch.uint8 or result.shape != images.shape:
        found = _describe(result) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"operation {name} returned {found}; expected torch.uint8 {list(images.shape)}")
    return result


def _apply(images: Tensor, operation: Numbers, value: Values, fill: Tensor) -> Tensor:
    """A new tensor; operations by their positions in `OPERATION_NAMES` and values in the ranges' units, [steps, B]."""
    if images.device.type not in COMPILED:
        return _apply_batched(images, operation, value, fill)
    from .cpu_kernels import transform  # takes numba, which needs a while to load

    result = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    # Of one layout, since numba compiles the loops anew for another.
    operation, value = np.ascontiguousarray(operation), np.ascontiguousarray(value)
    source, target, colour = images.contiguous().numpy(), result.numpy(), fill.numpy()

    def work(first: int, last: int) -> None:
        transform(source, operation, value, colour, target, first, last)

    images_in_ranges(work, len(source), operation.shape[0] * images.shape[1:].numel())
    return result


def _apply_batched(images: Tensor, operation: Numbers, value: Values, fill: Tensor) -> Tensor:
    """`_apply` by torch, on any device."""
    rank = np.array([_RANKS[name] for name in OPERATION_NAMES], np.int64)[operation]
    # Sorted by operation, each operation's images lie together.
    order = rank.argsort(1, kind="stable")
    value = np.take_along_axis(value, order, 1)
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(order.shape[1])[None], 1)
    # Each step finds its images where the one before has put them.
    order[1:] = np.take_along_axis(place[:-1], order[1:], 1)
    result = images
    for step_rank, step_order, step_value in zip(rank, order, value, strict=True):
        counts = np.bincount(step_rank, minlength=len(_RANKS)).tolist()
        result = _apply_sorted(result, torch.from_numpy(step_order).to(images.device), step_value, counts, fill)
    return result.index_select(0, torch.from_numpy(place[-1]).to(images.device))


def _apply_sorted(images: Tensor, order: Tensor, value: Values, counts: list[int], fill: Tensor) -> Tensor:
    """Apply the operations, so many images each, to images[order] with their values; they stay in that order."""
    result = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    limit = max(1, (GPU_CHUNK if images.is_cuda else CPU_CHUNK) // images.shape[1:].numel())
    stop, ranks = 0, iter(counts)
    for family in _FAMILIES:
        own = [next(ranks) for _ in family.names]
        start, stop = stop, stop + sum(own)
        if start == stop:
            continue
        parameters = family.parameters(own, value[start:stop], images)
        for first in range(start, stop, limit):
            last = min(first + limit, stop)
            part = torch.index_select(images, 0, order[first:last], out=result[first:last])
            if family.change is not None:
                first, last = first - start, last - start
                family.change(part, _overlaps(own, first, last), parameters[first:last], fill)
    return result


def _overlaps(counts: Sequence[int], start: int, stop: int) -> list[int]:
    """How many of each lie from start to stop, when so many of each lie one after another."""
    return [
        max(0, min(end, stop) - max(end - count, start)) for count, end in zip(counts, accumulate(counts), strict=True)
    ]


def _look_up(index: Values, magnitude: Values, space: OperationSpace) -> tuple[Numbers, Values]:
    """Positions in the space and values in the ranges' units, [steps, B]; checks the numbers."""
    known = (index >= 0) & (index < len(space.ranges))
    allowed = np.abs(magnitude) <= MAX_LEVEL  # false for NaN
    if not known.all():
        wrong = index[~known.all(1)][0]
        raise ValueError(
            f"index holds {wrong.min():.0f} to {wrong.max():.0f}; expected 0 to {len(space.ranges) - 1}, "
            f"the positions of the operations of space {space.name}"
        )
    if not allowed.all():
        raise ValueError(
            f"magnitude holds {magnitude[~allowed][0]:.9g}; expected a level of 0 to {MAX_LEVEL:g}, "
            "with a sign for its direction"
        )
    spreads = [spread or Range(0, 0) for spread in space.ranges.values()]
    entry = index.astype(np.int64)
    at_zero = np.array([spread.at_zero for spread in spreads], np.float64)[entry]
    at_ten = np.array([spread.at_ten for spread in spreads], np.float64)[entry]
    signed = np.array([spread.signed for spread in spreads], bool)[entry]
    value = at_zero + (at_ten - at_zero) * np.abs(magnitude) / MAX_LEVEL
    return entry, np.where(signed & (magnitude < 0), -value, value)


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
