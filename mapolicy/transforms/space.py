"""The operations by name, and the operation spaces: which operations, in which order, at which ranges. No torch.

Kept apart from the operations' code so that a bundle can be checked, and a list printed, without importing torch.
Both tables are open: a module outside the package adds an operation and a space that contains it.

    @register_operation("Invert", "255 minus the pixel's value")
    def invert(images, value, fill):            # uint8 [n, C, H, W], float64 [n], uint8 [C] -> uint8 [n, C, H, W]
        return 255 - images

    register_space("with-invert", [*OPERATION_NAMES, "Invert"], "metaaugment-v1 and Invert")

Order of the 14: MetaAugment (Zhou et al., AAAI 2021), section "Sample-Aware Data Augmentation". Ranges: the source of
each space.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from ..runtime.registry import Registry

MAX_LEVEL = 10.0
MAX_OPERATIONS = 64  # of a space; a bundle that names more is refused

# A transformation's embedding: level + 1 where the operation has a magnitude, else 11 (MetaAugment, "Policy network").
EMBEDDING_OFFSET = 1.0
EMBEDDING_WITHOUT_MAGNITUDE = 11.0


@dataclass(frozen=True)
class Range:
    """An operation's parameter at level 0 and at level 10, linear between them, mirrored where `signed`.

    The unit is the operation's (`Operation.unit`).
    """

    at_zero: float
    at_ten: float
    signed: bool = False

    @property
    def weakest(self) -> float:
        """The level that changes an image least, 0 to 10: where the parameter is 0, if it changes its sign, else 0."""
        changes_sign = self.at_zero * self.at_ten < 0
        return MAX_LEVEL * self.at_zero / (self.at_zero - self.at_ten) if changes_sign else 0.0

    def value(self, level: float) -> float:
        """The parameter at a level of -10 to 10, whose sign counts where the range is signed."""
        found = self.at_zero + (self.at_ten - self.at_zero) * abs(level) / MAX_LEVEL
        return -found if self.signed and level < 0 else found


@dataclass(frozen=True)
class OperationSpec:
    """One operation, without its code.

    Attributes:
        range: of its parameter in the default space; None for an operation without a magnitude.
        unit: of the parameter, as `mapolicy operations` prints it; "as NAME" gives the parameter a name instead, and
            "as NAME less 1" says that the parameter is 1 less.
        limits: least and greatest value that the operation accepts in a dataset-level policy.
        function: images uint8 [n, C, H, W], values float64 [n] and fill uint8 [C], all on one device, to new images of
            the same shape; it draws nothing at random. None for the 14, whose code is in `functional`.
        cpu_function: the same for images on a CPU; None takes `function`.
    """

    range: Range | None
    unit: str
    limits: tuple[float, float]
    function: Callable[..., Any] | None = None
    cpu_function: Callable[..., Any] | None = None

    def short(self, value: float) -> str:
        """A value of the parameter in few characters: 12.5 degrees as 12.5°, a factor as its number."""
        return f"{value + self.unit.endswith(' less 1'):.3g}{'°' if self.unit == 'degrees' else ''}"


@dataclass(frozen=True)
class OperationSpace:
    """Operations by name, in order; None stands for an operation that has no magnitude."""

    name: str
    ranges: Mapping[str, Range | None]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The operations in their order."""
        return tuple(self.ranges)

    @property
    def size(self) -> int:
        """K, the number of operations."""
        return len(self.ranges)

    @property
    def embedding_width(self) -> int:
        """Width of a transformation's embedding, 2K."""
        return 2 * self.size

    @cached_property
    def has_magnitude(self) -> tuple[bool, ...]:
        """For each operation, whether it has a magnitude."""
        return tuple(spread is not None for spread in self.ranges.values())


_ENHANCEMENT = (Range(0, 0.9, signed=True), "as factor less 1", (-1.0, 9.0))
_SLOPE = (Range(0, 0.3, signed=True), "pixels per pixel", (-1.0, 1.0))
_SHARE = (Range(0, 0.3125, signed=True), "of the side", (-1.0, 1.0))
_NOTHING = (None, "", (0.0, 0.0))

_BUILT_IN: Mapping[str, tuple[str, tuple[Range | None, str, tuple[float, float]]]] = {
    "AutoContrast": ("stretches each channel to the full range", _NOTHING),
    "Equalize": ("gives each channel an even histogram", _NOTHING),
    "Rotate": ("rotates about the centre", (Range(0, 30, signed=True), "degrees", (-180.0, 180.0))),
    "Posterize": ("drops the lowest bits", (Range(0, 4), "bits dropped", (0.0, 7.0))),
    "Solarize": ("inverts values from a threshold on", (Range(256, 0), "as threshold", (0.0, 256.0))),
    "Color": ("blends with the grey image", _ENHANCEMENT),
    "Contrast": ("blends with the mean grey", _ENHANCEMENT),
    "Brightness": ("blends with black", _ENHANCEMENT),
    "Sharpness": ("blends with the smoothed image", _ENHANCEMENT),
    "ShearX": ("shears along the rows", _SLOPE),
    "ShearY": ("shears along the columns", _SLOPE),
    "TranslateX": ("moves along the rows", _SHARE),
    "TranslateY": ("moves along the columns", _SHARE),
    "Identity": ("leaves the image as it is", _NOTHING),
}

OPERATION_SPECS: Registry[OperationSpec] = Registry(
    "operation", built_in=[(name, text, OperationSpec(*spec)) for name, (text, spec) in _BUILT_IN.items()]
)
OPERATION_NAMES = tuple(_BUILT_IN)  # the 14, in the order in which their code counts them

_ENHANCERS = ("Color", "Contrast", "Brightness", "Sharpness")
_SHEARS = ("ShearX", "ShearY")
_TRANSLATIONS = ("TranslateX", "TranslateY")

Registered = TypeVar("Registered", bound=Callable[..., Any])


def default_ranges(names: Iterable[str]) -> dict[str, Range | None]:
    """The operations' own ranges.

    Raises:
        UsageError: an operation is not registered.
    """
    return {name: OPERATION_SPECS.find(name).range for name in names}


def register_operation(
    name: str,
    description: str,
    range: Range | None = None,
    unit: str = "",
    limits: tuple[float, float] | None = None,
    cpu_function: Callable[..., Any] | None = None,
) -> Callable[[Registered], Registered]:
    """A decorator that adds the function below it as an operation and returns it unchanged.

    Args:
        name: how spaces, bundles and users call it.
        description: what it does, on one line.
        range: of its parameter; None for an operation without a magnitude.
        unit: of the parameter.
        limits: least and greatest value of the parameter; None takes those of the range.
        cpu_function: a faster function for images on a CPU, with the same result.

    Raises:
        ValueError: the name is taken or not allowed, or the description is not one line.
    """
    ends = [0.0] if range is None else [range.at_zero, range.at_ten]
    ends += [-end for end in ends] if range is not None and range.signed else []

    def decorate(function: Registered) -> Registered:
        spec = OperationSpec(range, unit, limits or (min(ends), max(ends)), function, cpu_function)
        OPERATION_SPECS.add(name, description, spec)
        return function

    return decorate


def _space(name: str, description: str, changes: dict[str, Range]) -> tuple[str, str, OperationSpace]:
    return name, description, OperationSpace(name, default_ranges(OPERATION_NAMES) | changes)


SPACES: Registry[OperationSpace] = Registry(
    "operation space",
    built_in=(
        _space("metaaugment-v1", "MetaAugment's ranges for small images", {}),
        # AutoAugment's ImageNet policy moves by up to 150 of 331 pixels.
        _space(
            "metaaugment-v1-imagenet",
            "the same with ImageNet's translations",
            dict.fromkeys(_TRANSLATIONS, Range(0, 0.453, signed=True)),
        ),
        # Cubuk et al., AutoAugment (CVPR 2019): enhancement factors .1 to 1.9, without a random sign.
        _space("autoaugment", "AutoAugment's enhancement factors", dict.fromkeys(_ENHANCERS, Range(-0.9, 0.9))),
        # Mueller and Hutter, TrivialAugment (ICCV 2021), "wide" ranges; 32 pixels at a side of 32.
        _space(
            "wide",
            "TrivialAugment's wide ranges",
            dict.fromkeys(_SHEARS, Range(0, 0.99, signed=True))
            | dict.fromkeys(_TRANSLATIONS, Range(0, 1.0, signed=True))
            | dict.fromkeys(_ENHANCERS, Range(0, 0.99, signed=True))
            | {"Rotate": Range(0, 135, signed=True), "Posterize": Range(0, 6)},
        ),
    ),
)


BUILT_IN_SPACES = tuple(SPACES)  # what the JSON Schema of a manifest knows, whatever a process has registered
DEFAULT_SPACE = "metaaugment-v1"
EMBEDDING_WIDTH = SPACES[DEFAULT_SPACE].embedding_width


def register_space(
    name: str, operations: Iterable[str] | Mapping[str, Range | None], description: str
) -> OperationSpace:
    """Add an operation space.

    Args:
        name: how settings and bundles call it.
        operations: names in order, each with the operation's own range, or names with their ranges in this space.
        description: what it is, on one line.

    Raises:
        ValueError: the name is taken or not allowed, an operation is named twice, a range is given to an operation
            without a magnitude or left out of one that has it, there are fewer than 2 or more than `MAX_OPERATIONS`,
            or Identity is missing.
        UsageError: an operation is not registered.
    """
    names = list(operations)
    own = default_ranges(names)
    ranges = dict(operations) if isinstance(operations, Mapping) else own
    if len(set(names)) < len(names):
        raise ValueError(f"operation space {name!r} names an operation twice")
    if not 2 <= len(names) <= MAX_OPERATIONS or "Identity" not in names:
        raise ValueError(f"operation space {name!r} needs Identity and 1 to {MAX_OPERATIONS - 1} other operations")
    for each, spread in ranges.items():
        if (spread is None) != (own[each] is None):
            raise ValueError(f"operation {each} of space {name!r} {'has no' if own[each] is None else 'needs a'} range")
    space = OperationSpace(name, ranges)
    SPACES.add(name, description, space)
    return space


def resolve_space(space: str | OperationSpace) -> OperationSpace:
    """The space of this name; a space is returned as it is.

    Raises:
        ValueError: no space of this name, or an operation of it is not registered.
    """
    if isinstance(space, str) and space in SPACES:
        return SPACES[space]
    if not isinstance(space, OperationSpace):
        raise ValueError(f"space is {space!r}; expected one of {', '.join(SPACES)}, or an OperationSpace")
    if unknown := [name for name in space.names if name not in OPERATION_SPECS]:
        raise ValueError(f"space {space.name} names {', '.join(unknown)}; expected only {', '.join(OPERATION_SPECS)}")
    return space


def level_edges(bins: int) -> tuple[float, ...]:
    """Signed levels between `bins` bins of equal width for each direction, ascending from -10 to 10."""
    return tuple(MAX_LEVEL * (position - bins) / bins for position in range(2 * bins + 1))
