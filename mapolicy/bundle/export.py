"""Export what a bundle draws for use without mapolicy: as torchvision transforms or for albumentations.

A bundle with levels is drawn from by operation and bin of levels, another one by pairs of operations. Neither library
can express the whole policy. `omissions` lists what is missing; the Python file repeats it.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..transforms.space import MAX_LEVEL, OPERATION_NAMES, SPACES, OperationSpace, Range, default_ranges
from .describe import log_levels
from .findings import SEEN
from .format import PROBABILITIES, level_probabilities
from .manifest import Manifest, ManifestDraft
from .safetensors_reader import RawTensor

FORMS = {"torchvision": ".py", "albumentations": ".json"}
BINS = 10  # levels in place of a continuous magnitude where a library's operation takes a single value

_WEIGHTS = "the weights P_i: every sample counts the same"
_ALWAYS = ("base augmentation, Cutout and normalisation: add your own",)
_STAGES = "the stages of a run: the mean of their second half is drawn from throughout"
_OMISSIONS = {
    "torchvision": (
        *_ALWAYS,
        f"continuous levels of Posterize, Solarize and Sharpness: {BINS} levels stand for them",
        "uniform slopes of ShearX and ShearY: torchvision draws angles, and pivots at the image's centre",
        "Pillow's rounding: pixels of a blend may differ by 1",
    ),
    "albumentations": (
        *_ALWAYS,
        "Sharpness: albumentations' Sharpen is another operation; Identity stands in its place",
        f"continuous levels of Posterize: {BINS} levels stand for them",
        "uniform slopes of ShearX and ShearY: albumentations draws angles, and pivots at the image's centre",
        "Pillow's rounding: pixels may differ",
    ),
}
_LEVEL_OMISSIONS = {
    "torchvision": (*_ALWAYS, "Pillow's rounding: pixels of a blend may differ by 1"),
    "albumentations": (
        *_ALWAYS,
        "Sharpness: albumentations' Sharpen is another operation; Identity stands in its place",
        f"continuous levels of Posterize: {BINS} levels stand for each bin",
        "uniform slopes of ShearX and ShearY: albumentations draws angles, and pivots at the image's centre",
        "directions of Rotate, ShearX, ShearY, TranslateX and TranslateY: they may be the opposite ones",
        "Pillow's rounding: pixels may differ",
    ),
}


def omissions(
    form: str,
    names: Iterable[str] = OPERATION_NAMES,
    stages: int = 0,
    equal_weights: bool = False,
    sees: str = "none",
) -> tuple[str, ...]:
    """What an exported policy leaves out or does differently.

    Args:
        form: a key of `FORMS`.
        names: the policy's operations.
        stages: of its levels; 0 for a policy without levels.
        equal_weights: its search weighed all samples alike, so no weights are lost.
        sees: what its draws see of an image, as `Levels.input`.
    """
    registered = [name for name in names if name not in OPERATION_NAMES]
    text = f"{', '.join(registered)}: {form} has no such operation; Identity takes its place"
    return (
        *([] if equal_weights else [_WEIGHTS]),
        *([_STAGES] if stages > 1 else []),
        *([f"draws that depend on the image's {SEEN[sees]}: all images have the data set's"] if sees in SEEN else []),
        *(_LEVEL_OMISSIONS if stages else _OMISSIONS)[form],
        *([text] if registered else []),
    )


def omissions_of(manifest: ManifestDraft, form: str) -> tuple[str, ...]:
    """The `omissions` of a bundle's policy in this form."""
    levels = manifest.levels
    stages, sees = (0, "none") if levels is None else (levels.stages, levels.input)
    return omissions(form, manifest.operations.names, stages, manifest.equal_weights, sees)


def export(manifest: Manifest, tensors: Mapping[str, RawTensor], form: str) -> str:
    """The content of a file that draws the policy's transformations: by operation and level, or by pairs of operations.

    Args:
        manifest, tensors: as `format.read_bundle` returns them.
        form: `torchvision` for a Python module whose `policy()` transforms uint8 images; `albumentations` for the JSON
            that `albumentations.load(path)` of version 2 reads.
    """
    names, table = manifest.operations.names, log_levels(tensors)
    fill = [round(255 * mean) if manifest.operations.fill == "mean" else 0 for mean in manifest.input.mean]
    if manifest.levels is not None and table is not None:
        cells = list(_cells(SPACES[manifest.operations.space], level_probabilities(table, manifest.levels.strength)))
        return (
            _torchvision_levels(manifest, cells, fill) if form == "torchvision" else _albumentations_levels(cells, fill)
        )
    values = np.asarray(tensors[PROBABILITIES].array(), dtype=np.float64)
    values = values / values.sum()
    pairs = [(first, second, float(values[j, k])) for j, first in enumerate(names) for k, second in enumerate(names)]
    ranges = {**default_ranges(OPERATION_NAMES), **SPACES[manifest.operations.space].ranges}
    if form == "torchvision":
        return _torchvision(manifest, pairs, ranges, fill)
    return _albumentations(pairs, ranges, fill)


def _span(spread: Range | None) -> tuple[float, float]:
    """The smallest and the largest value of a range; levels are uniform between them."""
    assert spread is not None
    ends = (-spread.at_ten, spread.at_ten) if spread.signed else (spread.at_zero, spread.at_ten)
    return min(ends), max(ends)


def _binned(spread: Range | None) -> list[float]:
    """The values in the middle of `BINS` equal parts of the levels, in both directions where the range is signed."""
    assert spread is not None
    levels = [(part + 0.5) * MAX_LEVEL / BINS for part in range(BINS)]
    values = [spread.at_zero + (spread.at_ten - spread.at_zero) * level / MAX_LEVEL for level in levels]
    return [round(value, 9) for value in ([-v for v in values] if spread.signed else []) + values]


def _degrees(slope: float) -> float:
    return round(math.degrees(math.atan(slope)), 6)


def _factors(spread: Range | None) -> tuple[float, float]:
    low, high = _span(spread)
    return round(1 + low, 9), round(1 + high, 9)


_PYTHON = '''\
"""Augmentation policy {digest}
as torchvision transforms, written by mapolicy. `policy()` transforms uint8 images, tensors or Pillow's.

Missing or different: {omissions}.
"""

from torchvision.transforms import v2

FILL = {fill}  # colour of pixels from outside the image


def operations():
    """Each operation as a transform that draws its magnitude at each call."""
    one_of = v2.RandomChoice
    return {{
{operations}
    }}


# First operation, second operation, probability (p_jk).
PAIRS = [
{pairs}
]


def policy(table=None):
    """A transform that draws a pair of operations from p_jk; `table` may replace operations by name."""
    table = table or operations()
    pairs = [v2.Compose([table[first], table[second]]) for first, second, _ in PAIRS]
    return v2.RandomChoice(pairs, p=[probability for _, _, probability in PAIRS])
'''


@dataclass(frozen=True)
class Cell:
    """An operation with its parameter uniform between two values, and the probability of drawing it."""

    operation: str
    low: float
    high: float
    probability: float


def _cells(space: OperationSpace, drawn: npt.NDArray[np.float64]) -> Iterator[Cell]:
    """What is drawn, cells that the space cannot tell apart as one; probabilities sum to 1.

    Args:
        space: the operations.
        drawn: float64 [K, bins], the probability of each operation and signed level.
    """
    bins = drawn.shape[1]
    edges = np.linspace(-MAX_LEVEL, MAX_LEVEL, bins + 1)
    for (name, spread), row in zip(space.ranges.items(), drawn, strict=True):
        if spread is None:
            yield Cell(name, 0.0, 0.0, float(row.sum()))
            continue
        for place in range(0 if spread.signed else bins // 2, bins):
            ends = []
            for level in edges[place : place + 2].tolist():
                value = spread.at_zero + (spread.at_ten - spread.at_zero) * abs(level) / MAX_LEVEL
                ends.append(round(-value if level < 0 else value, 9))
            yield Cell(name, min(ends), max(ends), float(row[place]) * (1 if spread.signed else 2))


_PYTHON_LEVELS = '''\
"""Augmentation policy {digest}
as torchvision transforms, written by mapolicy. `policy()` transforms uint8 images, tensors or Pillow's.

Missing or different: {omissions}.
"""

import math

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

FILL = {fill}  # colour of pixels from outside the image


def sheared(image, x=0.0, y=0.0):
    angles = [math.degrees(math.atan(slope)) for slope in (x, y)]
    return F.affine(image, 0, [0, 0], 1, angles, fill=FILL, center=[0, 0])


def shifted(image, x=0.0, y=0.0):
    height, width = F.get_size(image)
    pixels = [-math.floor(share * side + 0.5) for share, side in ((x, width), (y, height))]
    return F.affine(image, 0, pixels, 1, [0, 0], fill=FILL)


# Each operation: an image and its parameter's value.
OPERATIONS = {{
    "AutoContrast": lambda image, value: F.autocontrast(image),
    "Equalize": lambda image, value: F.equalize(image),
    "Rotate": lambda image, degrees: F.rotate(image, degrees, fill=FILL),
    "Posterize": lambda image, dropped: F.posterize(image, 8 - round(dropped)),
    "Solarize": lambda image, threshold: F.solarize(image, threshold),
    "Color": lambda image, change: F.adjust_saturation(image, 1 + change),
    "Contrast": lambda image, change: F.adjust_contrast(image, 1 + change),
    "Brightness": lambda image, change: F.adjust_brightness(image, 1 + change),
    "Sharpness": lambda image, change: F.adjust_sharpness(image, 1 + change),
    "ShearX": lambda image, slope: sheared(image, x=slope),
    "ShearY": lambda image, slope: sheared(image, y=slope),
    "TranslateX": lambda image, share: shifted(image, x=share),
    "TranslateY": lambda image, share: shifted(image, y=share),
    "Identity": lambda image, value: image,
}}

# Operation, least and greatest value of its parameter, probability.
CELLS = [
{cells}
]


class Policy(v2.Transform):
    """Applies two operations, each drawn from `CELLS` with a value uniform in its range."""

    def __init__(self, operations):
        super().__init__()
        self.operations = operations
        self.probabilities = torch.tensor([probability for *_, probability in CELLS])

    def forward(self, image):
        for cell in torch.multinomial(self.probabilities, 2, replacement=True).tolist():
            name, low, high, _ = CELLS[cell]
            value = low + (high - low) * float(torch.rand(()))
            image = self.operations.get(name, OPERATIONS["Identity"])(image, value)
        return image


def policy(operations=None):
    """A transform that draws two operations and their levels; `operations` may replace them by name."""
    return Policy(operations or OPERATIONS)
'''


def _torchvision_levels(manifest: Manifest, cells: Sequence[Cell], fill: list[int]) -> str:
    rows = [f'    ("{cell.operation}", {cell.low!r}, {cell.high!r}, {cell.probability!r}),' for cell in cells]
    return _PYTHON_LEVELS.format(
        digest=manifest.digest,
        omissions="; ".join(omissions_of(manifest, "torchvision")),
        fill=fill,
        cells="\n".join(rows),
    )


def _torchvision(
    manifest: Manifest, pairs: list[tuple[str, str, float]], ranges: Mapping[str, Range | None], fill: list[int]
) -> str:
    def share(name: str) -> float:
        return round(_span(ranges[name])[1], 9)

    def slope(name: str) -> float:
        return _degrees(_span(ranges[name])[1])

    dropped = [round(value) for value in _binned(ranges["Posterize"])]
    sharp = [round(1 + value, 9) for value in _binned(ranges["Sharpness"])]
    code = {
        "AutoContrast": "v2.RandomAutocontrast(p=1)",
        "Equalize": "v2.RandomEqualize(p=1)",
        "Rotate": f"v2.RandomRotation({_span(ranges['Rotate'])[1]:g}, fill=FILL)",
        "Posterize": f"one_of([v2.RandomPosterize(bits, p=1) for bits in {[8 - bits for bits in dropped]}])",
        "Solarize": f"one_of([v2.RandomSolarize(limit, p=1) for limit in {_binned(ranges['Solarize'])}])",
        "Color": f"v2.ColorJitter(saturation={_factors(ranges['Color'])})",
        "Contrast": f"v2.ColorJitter(contrast={_factors(ranges['Contrast'])})",
        "Brightness": f"v2.ColorJitter(brightness={_factors(ranges['Brightness'])})",
        "Sharpness": f"one_of([v2.RandomAdjustSharpness(factor, p=1) for factor in {sharp}])",
        "ShearX": f"v2.RandomAffine(0, shear=({-slope('ShearX')}, {slope('ShearX')}, 0, 0), fill=FILL)",
        "ShearY": f"v2.RandomAffine(0, shear=(0, 0, {-slope('ShearY')}, {slope('ShearY')}), fill=FILL)",
        "TranslateX": f"v2.RandomAffine(0, translate=({share('TranslateX')}, 0), fill=FILL)",
        "TranslateY": f"v2.RandomAffine(0, translate=(0, {share('TranslateY')}), fill=FILL)",
        "Identity": "v2.Identity()",
    }
    names = manifest.operations.names
    return _PYTHON.format(
        digest=manifest.digest,
        omissions="; ".join(omissions_of(manifest, "torchvision")),
        fill=fill,
        operations="\n".join(f'        "{name}": {code.get(name, code["Identity"])},' for name in names),
        pairs="\n".join(f'    ("{first}", "{second}", {probability!r}),' for first, second, probability in pairs),
    )


def _node(name: str, **arguments: Any) -> dict[str, Any]:
    return {"__class_fullname__": name, "p": 1.0, **arguments}


def _node_of(name: str, low: float, high: float, fill: list[int]) -> dict[str, Any]:
    """An operation of albumentations whose parameter lies between two values, in the units of `space.Range`."""

    def affine(**arguments: Any) -> dict[str, Any]:
        return _node("Affine", interpolation=0, border_mode=0, fill=[float(part) for part in fill], **arguments)

    def jitter(kind: str) -> dict[str, Any]:
        plain = {"brightness": [1.0, 1.0], "contrast": [1.0, 1.0], "saturation": [1.0, 1.0], "hue": [0.0, 0.0]}
        return _node("ColorJitter", **plain | {kind: [round(1 + low, 9), round(1 + high, 9)]})

    slopes, still = [_degrees(low), _degrees(high)], [0.0, 0.0]
    match name:
        case "AutoContrast":
            return _node("AutoContrast", method="pil")
        case "Equalize":
            return _node("Equalize", mode="pil", by_channels=True)
        case "Rotate":
            return affine(rotate=[low, high])
        case "Posterize":
            dropped = [low + (high - low) * (part + 0.5) / BINS for part in range(BINS)]
            bits = [8 - round(round(value, 9)) for value in dropped]
            return _node("OneOf", transforms=[_node("Posterize", num_bits=[kept, kept]) for kept in bits])
        case "Solarize":
            return _node("Solarize", threshold_range=[low / 256, high / 256])
        case "Color":
            return jitter("saturation")
        case "Contrast" | "Brightness":
            return jitter(name.lower())
        case "ShearX":
            return affine(shear={"x": slopes, "y": still})
        case "ShearY":
            return affine(shear={"x": still, "y": slopes})
        case "TranslateX":
            return affine(translate_percent={"x": [low, high], "y": still})
        case "TranslateY":
            return affine(translate_percent={"x": still, "y": [low, high]})
        case _:  # Identity, Sharpness, and what is registered
            return _node("NoOp")


def _albumentations(pairs: list[tuple[str, str, float]], ranges: Mapping[str, Range | None], fill: list[int]) -> str:
    table = {
        name: _node_of(name, *((0.0, 0.0) if spread is None else _span(spread)), fill)
        for name, spread in ranges.items()
    }
    # OneOf draws a member in proportion to its p; a Sequential then applies all of its transforms.
    members = [
        _node("Sequential", transforms=[table[name] for name in (first, second)]) | {"p": probability}
        for first, second, probability in pairs
    ]
    return _composed([_node("OneOf", transforms=members)])


def _albumentations_levels(cells: Sequence[Cell], fill: list[int]) -> str:
    members = [
        _node("Sequential", transforms=[_node_of(cell.operation, cell.low, cell.high, fill)]) | {"p": cell.probability}
        for cell in cells
    ]
    return _composed([_node("OneOf", transforms=members)] * 2)


def _composed(transforms: list[dict[str, Any]]) -> str:
    document = {"__version__": "2.0.8", "transform": _node("Compose", transforms=transforms)}
    return json.dumps(document, indent=1) + "\n"
