"""RandAugment, TrivialAugmentWide and uniformly sampled transformations for batches, drawn for each image.

torchvision's modules of the same names draw once for a whole batch. These draw for each image, apply the batched
operations, and can return and repeat what they applied:

    augment = RandAugment()
    images, applied = augment(images, return_applied=True)
    applied.names()  # [["Rotate", "Color"], ["Identity", "ShearX"], ...]
    same = applied.apply(originals)

The distribution is torchvision's: each operation with equal probability, the same value for each bin, each direction
with probability 1/2. The pixels are those that torchvision computes for a PIL image, bit for bit. For tensors
torchvision computes differently: Color, Contrast, Sharpness and AutoContrast differ by 1 grey level, some angles of
ShearX, ShearY and Rotate in which neighbour is nearest, and some thresholds of Solarize in the pixels equal to them
(`benchmarks/RESULTS.md` counts them).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import prod
from typing import Any, Self

import numpy as np
import torch
from PIL.Image import Image as PILImage
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchvision import tv_tensors
from torchvision.transforms import v2

from .functional import apply_operation
from .space import DEFAULT_SPACE, MAX_LEVEL, OperationSpace, Range, resolve_space

Fill = float | Sequence[float] | np.ndarray | np.generic | None

# torchvision's order.
_BINNED = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)


@dataclass(frozen=True, eq=False)
class AppliedOperations:
    """N operations for each image of a batch, to apply one after the other.

    Attributes:
        operations: int64 [B, N], positions in the space.
        magnitudes: float64 [B, N] in [-10, 10]. The absolute value is the level, the sign the direction of operations
            that have one; 0 for operations without magnitude.
        space: defines the operations and their ranges.
        fill: colour of pixels from outside the image, one number for each channel.
    """

    operations: Tensor
    magnitudes: Tensor
    space: OperationSpace
    fill: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.operations)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Self:
        """The operations of some of the images; an integer gives a batch of one."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor[rows][None] if isinstance(rows, int) else tensor[rows]

        return type(self)(chosen(self.operations), chosen(self.magnitudes), self.space, self.fill)

    def to(self, device: torch.device | str) -> Self:
        """The same operations on a device."""
        operations, magnitudes = (part.to(device, non_blocking=True) for part in (self.operations, self.magnitudes))
        return type(self)(operations, magnitudes, self.space, self.fill)

    def names(self) -> list[list[str]]:
        """For each image the names of its operations, in the order of application."""
        return [[self.space.names[index] for index in row] for row in self.operations.tolist()]

    def apply(self, images: Tensor) -> Tensor:
        """Apply the operations; every call with the same images gives the same bits.

        Args:
            images: uint8 [..., C, H, W], B images in total; not changed. A `tv_tensors.Image` gives one.

        Raises:
            TypeError: the images have another type or dtype.
            ValueError: the images have another shape, number or number of channels than the operations were drawn for.
        """
        _check_images(images)
        if prod(images.shape[:-3]) != len(self):
            raise ValueError(f"{prod(images.shape[:-3])} images came with the operations of {len(self)}")
        batch = images.as_subclass(Tensor).reshape(len(self), *images.shape[-3:])
        moved = self.to(batch.device)
        fill = torch.tensor(self.fill, dtype=torch.uint8, device=batch.device)
        for operation, magnitude in zip(moved.operations.unbind(1), moved.magnitudes.unbind(1), strict=True):
            batch = apply_operation(batch, operation, magnitude, self.space, fill)
        result = batch.reshape(images.shape) if self.operations.shape[1] else images.as_subclass(Tensor).clone()
        return tv_tensors.wrap(result, like=images) if isinstance(images, tv_tensors.Image) else result

    def state(self) -> dict[str, Any]:
        """All attributes as lists, numbers and texts for JSON, with operations by name."""
        ranges = {name: None if spread is None else asdict(spread) for name, spread in self.space.ranges.items()}
        return {
            "operations": self.names(),
            "magnitudes": self.magnitudes.tolist(),
            "space": {"name": self.space.name, "ranges": ranges},
            "fill": list(self.fill),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """What `state` was made of, to the bit, on the CPU.

        Raises:
            ValueError: `state` has not made this.
        """
        try:
            spreads = state["space"]["ranges"]
            ranges = {name: None if spread is None else Range(**spread) for name, spread in spreads.items()}
            space = OperationSpace(state["space"]["name"], ranges)
            operations = [[space.names.index(name) for name in row] for row in state["operations"]]
            shape = (len(operations), len(operations[0]) if operations else 0)
            return cls(
                torch.tensor(operations, dtype=torch.int64, device="cpu").reshape(shape),
                torch.tensor(state["magnitudes"], dtype=torch.float64, device="cpu").reshape(shape),
                space,
                tuple(state["fill"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"this is not a state of applied operations ({error!r}); give what state() returned"
            ) from error


def draw_operations(
    space: OperationSpace,
    batch: int,
    num_ops: int,
    levels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw operations and magnitudes for each image, independently and with replacement.

    Each operation, level and direction is equally likely. The draw for an image depends on the generator's state and
    the image's position in the batch, not on the number of images after it.

    Args:
        space: the operations to draw from.
        batch: B, the number of images.
        num_ops: N, operations for each image.
        levels: float64 [K, n] in [0, 10], the n levels to draw from for each of the space's K operations; None draws
            uniformly from [0, 10].
        generator: on the CPU; None uses torch's global one.

    Returns:
        Operations int64 [B, N] and magnitudes float64 [B, N] on the CPU, as in `AppliedOperations`.
    """
    which, how_much, direction = torch.rand(
        batch, num_ops, 3, dtype=torch.float64, generator=generator, device="cpu"
    ).unbind(2)
    operations = (which * len(space.names)).long()
    level = how_much * MAX_LEVEL if levels is None else levels[operations, (how_much * levels.shape[1]).long()]
    # For each direction the factor of the level: (1, -1) for a signed operation, (0, 0) for one without a magnitude.
    factors = [(1, -1 if spread.signed else 1) if spread is not None else (0, 0) for spread in space.ranges.values()]
    return operations, level * torch.tensor(factors, device="cpu")[operations, (direction < 0.5).long()]


@lru_cache(maxsize=64)  # most batches have images of the same size
def _binned_space(
    name: str,
    bins: int,
    size: tuple[int, int],
    translation: tuple[float, float],
    shear: float,
    rotation: float,
    enhancement: float,
    bits: int,
) -> tuple[OperationSpace, Tensor]:
    """torchvision's augmentation space as an `OperationSpace`, with the level of each bin.

    Bin i of n is level 10 i / (n - 1), with torchvision's float32 rounding. Two operations are rounded further:
    translations to whole pixels, towards zero, and Posterize to whole bits.
    Source: `_augmentation_space` in torchvision.transforms.autoaugment.

    Args:
        name: of the space.
        bins: n, at least 2.
        size: height and width of the images in pixels.
        translation: of the last bin, in pixels along height and width.
        shear: of the last bin, in pixels per pixel.
        rotation: of the last bin, in degrees.
        enhancement: of the last bin, the factor minus 1.
        bits: number of bits that Posterize drops in the last bin.

    Returns:
        The space, and float64 [K, bins], the level of each operation in each bin.
    """
    (height, width), (down, across) = size, translation
    # The values of the first and the last bin in torchvision's unit, and that unit in the unit of `Range`.
    ends = {
        **dict.fromkeys(("ShearX", "ShearY"), (0, shear, 1)),
        "TranslateX": (0, across, 1 / width),
        "TranslateY": (0, down, 1 / height),
        "Rotate": (0, rotation, 1),
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0, enhancement, 1)),
        "Posterize": (0, bits, 1),
        "Solarize": (1, 0, 255),
    }
    ranges: dict[str, Range | None] = dict.fromkeys(_BINNED)
    levels = torch.zeros(len(ranges), bins, dtype=torch.float64, device="cpu")
    for row, operation in enumerate(_BINNED):
        if operation not in ends:
            continue
        start, end, unit = ends[operation]
        values = torch.linspace(start, end, bins, device="cpu").double()
        first, last = values[0].item(), values[-1].item()
        if operation.startswith("Translate"):
            values = values.trunc()
        elif operation == "Posterize":
            kept = (8 - torch.arange(bins, device="cpu") / ((bins - 1) / bits)).round()
            values = 8 - kept.double()
        ranges[operation] = Range(first * unit, last * unit, signed=operation not in ("Posterize", "Solarize"))
        levels[row] = MAX_LEVEL * (values - first) / (last - first)
    return OperationSpace(name, ranges), levels


class _PerImage(v2.Transform, ABC):  # type: ignore[misc] # torchvision has no types
    """Base of the modules; a subclass says what is drawn from."""

    num_ops: int

    def __init__(self, interpolation: str | int | v2.InterpolationMode, fill: Fill) -> None:
        super().__init__()
        if interpolation not in ("nearest", v2.InterpolationMode.NEAREST, 0):
            raise ValueError(f"interpolation is {interpolation!r}; the batched operations take the nearest pixel only")
        self.interpolation = "nearest"
        self.fill = fill
        self._fill = _colour(fill)

    @abstractmethod
    def _space_for(self, size: tuple[int, int]) -> tuple[OperationSpace, Tensor | None]:
        """For images of a height and width the `space` and `levels` of `draw_operations`."""

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> AppliedOperations:
        """Draw operations for each image without applying them.

        Args:
            images: uint8 [..., C, H, W]; only their number and size matter.
            generator: on the CPU; None uses torch's global one.

        Returns:
            The operations, on the CPU.

        Raises:
            TypeError, ValueError: the images have another type, dtype or shape, or `fill` another number of channels.
        """
        _check_images(images)
        channels, height, width = images.shape[-3:]
        if len(self._fill) not in (1, channels):
            raise ValueError(f"fill is {self.fill!r}; expected one number, or one for each of {channels} channels")
        fill = self._fill * channels if len(self._fill) == 1 else self._fill
        space, levels = self._space_for((height, width))
        drawn = draw_operations(space, prod(images.shape[:-3]), self.num_ops, levels, generator)
        return AppliedOperations(*drawn, space, fill)

    def forward(self, *inputs: Any, generator: torch.Generator | None = None, return_applied: bool = False) -> Any:
        """Augment the images among the inputs; the output has the structure of the inputs.

        Args:
            inputs: as for torchvision's v2 transforms: an image, a batch, or nested tuples, lists and dictionaries
                that hold one of them. The images are the `tv_tensors.Image`, or without one the first plain tensor.
                Everything else, such as labels and paths, is returned unchanged.
            generator: on the CPU; None uses torch's global one, as torchvision does.
            return_applied: whether to return (inputs, `AppliedOperations`), the latter on the CPU.

        Raises:
            TypeError: there is no image or more than one, the images are not a uint8 tensor, or the inputs hold masks,
                boxes, key points or videos.
            ValueError: the shape is not [..., C, H, W] with C = 1 or 3.
        """
        leaves, structure = tree_flatten(inputs[0] if len(inputs) == 1 else inputs)
        place = self._place_of_images(leaves)
        applied = self.draw(leaves[place], generator)
        leaves[place] = applied.apply(leaves[place])
        outputs = tree_unflatten(leaves, structure)
        return (outputs, applied) if return_applied else outputs

    def _place_of_images(self, leaves: Sequence[Any]) -> int:
        name = type(self).__name__
        for leaf in leaves:
            if isinstance(leaf, PILImage):
                raise TypeError(f"{name} works on tensors, found a PIL image; put v2.PILToTensor() before it")
            if isinstance(leaf, tv_tensors.TVTensor) and not isinstance(leaf, tv_tensors.Image):
                raise TypeError(
                    f"{name} augments images alone, found {type(leaf).__name__}; its operations are for classification"
                )
        explicit = [place for place, leaf in enumerate(leaves) if isinstance(leaf, tv_tensors.Image)]
        plain = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if not plain:
            raise TypeError(f"{name} found no image among its inputs; give it a uint8 tensor [..., C, H, W]")
        if len(explicit) > 1:
            raise TypeError(f"{name} found {len(explicit)} images; stack them into one batch, or call it for each")
        return (explicit or plain)[0]


class RandAugment(_PerImage):
    """RandAugment on a batch: `num_ops` random operations for each image, all at one magnitude.

    Source: Cubuk et al., "RandAugment" (NeurIPS 2020), with the operations, values and defaults of
    `torchvision.transforms.v2.RandAugment`; `forward` describes the call.

    Args:
        num_ops: operations for each image, drawn with replacement.
        magnitude: the bin, from 0.
        num_magnitude_bins: at least 2.
        interpolation: must be "nearest".
        fill: colour of pixels from outside the image, 0 to 255, one number or one for each channel; None is black.

    Raises:
        ValueError: an argument is not valid.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        interpolation: str | int | v2.InterpolationMode = "nearest",
        fill: Fill = None,
    ) -> None:
        super().__init__(interpolation, fill)
        if num_ops != int(num_ops) or num_ops < 0:
            raise ValueError(f"num_ops is {num_ops!r}; expected a whole number, 0 or more")
        _check_bins(num_magnitude_bins)
        if magnitude != int(magnitude) or not 0 <= magnitude < num_magnitude_bins:
            raise ValueError(f"magnitude is {magnitude!r}; expected 0 to {num_magnitude_bins - 1}, one of the bins")
        self.num_ops, self.magnitude, self.num_magnitude_bins = int(num_ops), int(magnitude), int(num_magnitude_bins)

    def _space_for(self, size: tuple[int, int]) -> tuple[OperationSpace, Tensor | None]:
        height, width = size
        space, levels = _binned_space(
            "randaugment",
            self.num_magnitude_bins,
            size,
            translation=(150 / 331 * height, 150 / 331 * width),
            shear=0.3,
            rotation=30,
            enhancement=0.9,
            bits=4,
        )
        return space, levels[:, [self.magnitude]]


class TrivialAugmentWide(_PerImage):
    """TrivialAugment on a batch: one random operation for each image, at a random magnitude from a wide range.

    Source: Mueller and Hutter, "TrivialAugment" (ICCV 2021), with the operations, values and defaults of
    `torchvision.transforms.v2.TrivialAugmentWide`; `forward` describes the call.

    Args:
        num_magnitude_bins: at least 2.
        interpolation: must be "nearest".
        fill: colour of pixels from outside the image, 0 to 255, one number or one for each channel; None is black.

    Raises:
        ValueError: an argument is not valid.
    """

    num_ops = 1

    def __init__(
        self,
        num_magnitude_bins: int = 31,
        interpolation: str | int | v2.InterpolationMode = "nearest",
        fill: Fill = None,
    ) -> None:
        super().__init__(interpolation, fill)
        _check_bins(num_magnitude_bins)
        self.num_magnitude_bins = int(num_magnitude_bins)

    def _space_for(self, size: tuple[int, int]) -> tuple[OperationSpace, Tensor | None]:
        return _binned_space(
            "trivialaugmentwide",
            self.num_magnitude_bins,
            size,
            translation=(32, 32),
            shear=0.99,
            rotation=135,
            enhancement=0.99,
            bits=6,
        )


class UniformTransformations(_PerImage):
    """Two operations for each image; each pair and each level is equally likely.

    This is MetaAugment's sampler (Zhou et al., AAAI 2021) before it has learned, without sample weights. `forward`
    describes the call.

    Args:
        space: a name in `mapolicy.transforms.space.SPACES`, or an `OperationSpace`.
        fill: colour of pixels from outside the image, 0 to 255, one number or one for each channel; None is black.

    Raises:
        ValueError: an argument is not valid.
    """

    num_ops = 2

    def __init__(self, space: str | OperationSpace = DEFAULT_SPACE, fill: Fill = None) -> None:
        super().__init__("nearest", fill)
        self._space = resolve_space(space)
        self.space = self._space.name

    def _space_for(self, size: tuple[int, int]) -> tuple[OperationSpace, Tensor | None]:
        return self._space, None


def _check_bins(bins: int) -> None:
    if bins != int(bins) or bins < 2:
        why = "expected a whole number, at least 2, the weakest and the strongest"
        raise ValueError(f"num_magnitude_bins is {bins!r}; {why}")


def _check_images(images: Any) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images are {type(images).__name__}, expected a torch.uint8 tensor [..., C, H, W]")
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images are {images.dtype}, expected torch.uint8; augment before v2.ToDtype and v2.Normalize "
            "(of several plain tensors the first one counts as the images)"
        )
    if images.ndim < 3 or images.shape[-3] not in (1, 3) or 0 in images.shape[-2:]:
        raise ValueError(f"images have shape {tuple(images.shape)}, expected [..., C, H, W] with C = 1 or 3")


def _colour(fill: Fill) -> tuple[int, ...]:
    """The fill colour as integers: one for all channels, or one for each."""
    if isinstance(fill, np.ndarray | np.generic):
        fill = fill.tolist()
    numbers = (0,) if fill is None else tuple(fill) if isinstance(fill, Sequence) else (fill,)
    for number in numbers:
        if not isinstance(number, int | float) or not 0 <= number <= 255 or number != int(number):
            raise ValueError(f"fill is {fill!r}; expected whole numbers from 0 to 255, one or one for each channel")
    return tuple(int(number) for number in numbers)
