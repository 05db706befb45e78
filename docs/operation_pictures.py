"""Draws docs/images/operations-SPACE.png: every operation at levels 2, 5 and 10, for each space of operations.

python docs/operation_pictures.py        # needs no download: the photo is scikit-learn's
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from mapolicy.report.figures import rendered, tile_figure
from mapolicy.transforms.functional import apply_operation
from mapolicy.transforms.space import OPERATION_SPECS, SPACES, OperationSpace

IMAGES = Path(__file__).resolve().parent / "images"
LEVELS = (2.0, 5.0, 10.0)
SIDE = 48  # pixels
OPERATIONS_IN_A_ROW = 2


def photo() -> torch.Tensor:
    """The middle of a photo of a flower: uint8 [3, SIDE, SIDE]."""
    image = Image.fromarray(load_sample_image("flower.jpg")).crop((170, 60, 490, 380)).resize((SIDE, SIDE))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def caption(space: OperationSpace, name: str, level: float) -> str:
    """The operation, and its value at the level in its own unit."""
    spread = space.ranges[name]
    if spread is None:
        return name
    unit = OPERATION_SPECS[name].unit.replace("pixels per pixel", "as slope")
    if not unit.startswith("as "):
        return f"{name} {level:g}\n{spread.value(level):.3g} {unit}"
    value = spread.value(level) + (1 if unit.endswith(" less 1") else 0)
    return f"{name} {level:g}\n{unit.removeprefix('as ').removesuffix(' less 1')} {value:.3g}"


def picture(space: OperationSpace) -> bytes:
    """All operations of a space as one PNG, two operations in a row."""
    image, rows = photo(), []
    fill = image.float().mean((1, 2)).byte()
    for start in range(0, space.size, OPERATIONS_IN_A_ROW):
        tiles = []
        for index, name in list(enumerate(space.names))[start : start + OPERATIONS_IN_A_ROW]:
            which, magnitude = torch.full((len(LEVELS),), index), torch.tensor(LEVELS)
            drawn = apply_operation(image.expand(len(LEVELS), -1, -1, -1), which, magnitude, space, fill)
            tiles += [(each.numpy(), caption(space, name, level)) for each, level in zip(drawn, LEVELS, strict=True)]
        rows.append(("", tiles))
    return rendered(tile_figure(rows))["png"]


if __name__ == "__main__":
    for space in SPACES.values():
        drawn = Image.open(io.BytesIO(picture(space))).convert("RGB")
        drawn.quantize(256).save(IMAGES / f"operations-{space.name}.png", optimize=True)  # a third of the bytes
