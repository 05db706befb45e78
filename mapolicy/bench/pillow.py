"""The 14 operations by Pillow, one image at a time: the reference for results and for time.

Sources: Pillow's ImageOps, ImageEnhance, Image.rotate and Image.transform; ranges from `transforms/space.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from ..transforms.space import DEFAULT_SPACE, MAX_LEVEL, OPERATION_NAMES, SPACES
from ..transforms.transformation import Transformation

Fill = tuple[int, ...]
Function = Callable[[Image.Image, float, Fill], Image.Image]


def _affine(*matrix: Callable[[float, Image.Image], float] | int) -> Function:
    def function(image: Image.Image, value: float, fill: Fill) -> Image.Image:
        numbers = tuple(entry if isinstance(entry, int) else entry(value, image) for entry in matrix)
        return image.transform(image.size, Image.Transform.AFFINE, numbers, Image.Resampling.NEAREST, fillcolor=fill)

    return function


def _enhancer(kind: Any) -> Function:
    return lambda image, value, fill: kind(image).enhance(1 + value)


FUNCTIONS: Mapping[str, Function] = {
    "AutoContrast": lambda image, value, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, value, fill: ImageOps.equalize(image),
    "Rotate": lambda image, value, fill: image.rotate(value, Image.Resampling.NEAREST, fillcolor=fill),
    "Posterize": lambda image, value, fill: ImageOps.posterize(image, 8 - round(value)),
    # Pillow annotates an int, but compares pixels with any number.
    "Solarize": lambda image, value, fill: ImageOps.solarize(image, value),  # type: ignore[arg-type]
    "Color": _enhancer(ImageEnhance.Color),
    "Contrast": _enhancer(ImageEnhance.Contrast),
    "Brightness": _enhancer(ImageEnhance.Brightness),
    "Sharpness": _enhancer(ImageEnhance.Sharpness),
    "ShearX": _affine(1, lambda value, image: value, 0, 0, 1, 0),
    "ShearY": _affine(1, 0, 0, lambda value, image: value, 1, 0),
    "TranslateX": _affine(1, 0, lambda value, image: value * image.width, 0, 1, 0),
    "TranslateY": _affine(1, 0, 0, 0, 1, lambda value, image: value * image.height),
    "Identity": lambda image, value, fill: image,
}


def transform_by_pillow(images: Sequence[Image.Image], transformation: Transformation, fill: Fill) -> list[Image.Image]:
    """`Transformation.apply` in the default space, by Pillow, one RGB image after the other."""
    work = zip(
        images,
        zip(transformation.first.tolist(), transformation.magnitude1.tolist(), strict=True),
        zip(transformation.second.tolist(), transformation.magnitude2.tolist(), strict=True),
        strict=True,
    )
    return [_operate(_operate(image, *first, fill), *second, fill) for image, first, second in work]


def _operate(image: Image.Image, index: int, magnitude: float, fill: Fill) -> Image.Image:
    name = OPERATION_NAMES[index]
    spread = SPACES[DEFAULT_SPACE].ranges[name]
    value = 0.0
    if spread is not None:
        value = spread.at_zero + (spread.at_ten - spread.at_zero) * abs(magnitude) / MAX_LEVEL
        value = -value if spread.signed and magnitude < 0 else value
    return FUNCTIONS[name](image, value, fill)


def to_pillow(images: Tensor) -> list[Image.Image]:
    """Convert uint8 [B, 3, H, W] to RGB images."""
    return [Image.fromarray(array) for array in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def from_pillow(images: Sequence[Image.Image]) -> Tensor:
    """Convert RGB images of one size to uint8 [B, 3, H, W]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()
