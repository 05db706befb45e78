"""The operation space: which operations there are, in which order, and what each level of magnitude means.

Kept apart from the operations' code so that a bundle can be checked, and a list printed, without importing torch.
Order: MetaAugment (Zhou et al., AAAI 2021), section "Sample-Aware Data Augmentation". Ranges: each space's own source.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MAX_LEVEL = 10.0


@dataclass(frozen=True)
class Range:
    """An operation's parameter at level 0 and at level 10, linear between them, mirrored where `signed`.

    Units: Rotate degrees · ShearX/Y pixels per pixel · TranslateX/Y share of the image's side · Posterize bits
    dropped · Solarize threshold · Color, Contrast, Brightness, Sharpness the enhancement factor less 1.
    """

    at_zero: float
    at_ten: float
    signed: bool = False


@dataclass(frozen=True)
class OperationSpace:
    """Operations by name, in order; None stands for an operation that has no magnitude."""

    name: str
    ranges: Mapping[str, Range | None]

    @property
    def names(self) -> tuple[str, ...]:
        """The operations in their order."""
        return tuple(self.ranges)


_METAAUGMENT: dict[str, Range | None] = {
    "AutoContrast": None,
    "Equalize": None,
    "Rotate": Range(0, 30, signed=True),
    "Posterize": Range(0, 4),
    "Solarize": Range(256, 0),
    "Color": Range(0, 0.9, signed=True),
    "Contrast": Range(0, 0.9, signed=True),
    "Brightness": Range(0, 0.9, signed=True),
    "Sharpness": Range(0, 0.9, signed=True),
    "ShearX": Range(0, 0.3, signed=True),
    "ShearY": Range(0, 0.3, signed=True),
    "TranslateX": Range(0, 0.3125, signed=True),
    "TranslateY": Range(0, 0.3125, signed=True),
    "Identity": None,
}

_ENHANCERS = ("Color", "Contrast", "Brightness", "Sharpness")
_SHEARS = ("ShearX", "ShearY")
_TRANSLATIONS = ("TranslateX", "TranslateY")


def _space(name: str, changes: dict[str, Range]) -> OperationSpace:
    return OperationSpace(name, _METAAUGMENT | changes)


SPACES: dict[str, OperationSpace] = {
    space.name: space
    for space in (
        _space("metaaugment-v1", {}),
        # AutoAugment's ImageNet policy moves by up to 150 of 331 pixels.
        _space("metaaugment-v1-imagenet", dict.fromkeys(_TRANSLATIONS, Range(0, 0.453, signed=True))),
        # Cubuk et al., AutoAugment (CVPR 2019): enhancement factors .1 to 1.9, without a random sign.
        _space("autoaugment", dict.fromkeys(_ENHANCERS, Range(-0.9, 0.9))),
        # Mueller and Hutter, TrivialAugment (ICCV 2021), "wide" ranges; 32 pixels at a side of 32.
        _space(
            "wide",
            dict.fromkeys(_SHEARS, Range(0, 0.99, signed=True))
            | dict.fromkeys(_TRANSLATIONS, Range(0, 1.0, signed=True))
            | dict.fromkeys(_ENHANCERS, Range(0, 0.99, signed=True))
            | {"Rotate": Range(0, 135, signed=True), "Posterize": Range(0, 6)},
        ),
    )
}

DEFAULT_SPACE = "metaaugment-v1"
OPERATION_NAMES = SPACES[DEFAULT_SPACE].names
UNITS: Mapping[str, str] = {
    "Rotate": "degrees",
    "Posterize": "bits dropped",
    "Solarize": "as threshold",
    **dict.fromkeys(_ENHANCERS, "as factor less 1"),
    **dict.fromkeys(_SHEARS, "pixels per pixel"),
    **dict.fromkeys(_TRANSLATIONS, "of the side"),
}
HAS_MAGNITUDE = tuple(spread is not None for spread in SPACES[DEFAULT_SPACE].ranges.values())

# A transformation's embedding: level + 1 where the operation has a magnitude, else 11 (MetaAugment, "Policy network").
EMBEDDING_WIDTH = 2 * len(OPERATION_NAMES)
EMBEDDING_OFFSET = 1.0
EMBEDDING_WITHOUT_MAGNITUDE = 11.0
