"""Export a bundle's probabilities p_jk for use without mapolicy: as torchvision transforms or for albumentations.

Neither library can express the whole policy. `omissions` lists what is missing; the Python file repeats it.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..transforms.space import MAX_LEVEL, OPERATION_NAMES, SPACES, Range, default_ranges
from .format import PROBABILITIES
from .manifest import Manifest
from .safetensors_reader import RawTensor

FORMS = {"torchvision": ".py", "albumentations": ".json"}
BINS = 10  # levels in place of a continuous magnitude where a library's operation takes a single value

_ALWAYS = (
    "the weights P_i: every sample counts the same",
    "base augmentation, Cutout and normalisation: add your own",
)
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


def omissions(form: str, names: Iterable[str] = OPERATION_NAMES) -> tuple[str, ...]:
    """What an exported policy leaves out or does differently.

    Args:
        form: a key of `FORMS`.
        names: the policy's operations.
    """
    registered = [name for name in names if name not in OPERATION_NAMES]
    text = f"{', '.join(registered)}: {form} has no such operation; Identity takes its place"
    return (*_OMISSIONS[form], *([text] if registered else []))


def export(manifest: Manifest, tensors: Mapping[str, RawTensor], form: str) -> str:
    """The content of a file that applies the policy's pairs of operations with their probabilities p_jk.

    Args:
        manifest, tensors: as `format.read_bundle` returns them.
        form: `torchvision` for a Python module whose `policy()` transforms uint8 images; `albumentations` for the JSON
            that `albumentations.load(path)` of version 2 reads.
    """
    names = manifest.operations.names
    values = np.asarray(tensors[PROBABILITIES].array(), dtype=np.float64)
    values = values / values.sum()
    pairs = [(first, second, float(values[j, k])) for j, first in enumerate(names) for k, second in enumerate(names)]
    fill = [round(255 * mean) if manifest.operations.fill == "mean" else 0 for mean in manifest.input.mean]
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
        omissions="; ".join(omissions("torchvision", names)),
        fill=fill,
        operations="\n".join(f'        "{name}": {code.get(name, code["Identity"])},' for name in names),
        pairs="\n".join(f'    ("{first}", "{second}", {probability!r}),' for first, second, probability in pairs),
    )


def _albumentations(pairs: list[tuple[str, str, float]], ranges: Mapping[str, Range | None], fill: list[int]) -> str:
    def node(name: str, **arguments: Any) -> dict[str, Any]:
        return {"__class_fullname__": name, "p": 1.0, **arguments}

    def affine(**arguments: Any) -> dict[str, Any]:
        return node("Affine", interpolation=0, border_mode=0, fill=[float(part) for part in fill], **arguments)

    def jitter(name: str, kind: str) -> dict[str, Any]:
        still = {"brightness": [1.0, 1.0], "contrast": [1.0, 1.0], "saturation": [1.0, 1.0], "hue": [0.0, 0.0]}
        return node("ColorJitter", **still | {kind: list(_factors(ranges[name]))})

    def slopes(name: str) -> list[float]:
        return [_degrees(value) for value in _span(ranges[name])]

    still = [0.0, 0.0]
    bits = [8 - round(value) for value in _binned(ranges["Posterize"])]
    table = {
        "AutoContrast": node("AutoContrast", method="pil"),
        "Equalize": node("Equalize", mode="pil", by_channels=True),
        "Rotate": affine(rotate=list(_span(ranges["Rotate"]))),
        "Posterize": node("OneOf", transforms=[node("Posterize", num_bits=[kept, kept]) for kept in bits]),
        "Solarize": node("Solarize", threshold_range=[value / 256 for value in _span(ranges["Solarize"])]),
        "Color": jitter("Color", "saturation"),
        "Contrast": jitter("Contrast", "contrast"),
        "Brightness": jitter("Brightness", "brightness"),
        "Sharpness": node("NoOp"),
        "ShearX": affine(shear={"x": slopes("ShearX"), "y": still}),
        "ShearY": affine(shear={"x": still, "y": slopes("ShearY")}),
        "TranslateX": affine(translate_percent={"x": list(_span(ranges["TranslateX"])), "y": still}),
        "TranslateY": affine(translate_percent={"x": still, "y": list(_span(ranges["TranslateY"]))}),
        "Identity": node("NoOp"),
    }
    # OneOf draws a member in proportion to its p; a Sequential then applies all of its transforms.
    members = [
        node("Sequential", transforms=[table.get(name, node("NoOp")) for name in (first, second)]) | {"p": probability}
        for first, second, probability in pairs
    ]
    policy = node("Compose", transforms=[node("OneOf", transforms=members)])
    return json.dumps({"__version__": "2.0.8", "transform": policy}, indent=1) + "\n"
