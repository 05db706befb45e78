"""Data sets made for tests: a folder of small random images for each class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cow")


def write_folder(
    root: Path,
    classes: Sequence[str] = CLASSES,
    per_class: int = 12,
    size: tuple[int, int] = (8, 8),
    mode: str = "RGB",
) -> Path:
    """Write PNG images of a width and height to a folder for each class, the same at each call; returns `root`."""
    draws = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = draws.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{number:02}.png")
    return root
