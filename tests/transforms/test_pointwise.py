"""Tables, masks and counts against their definitions; the operations themselves meet Pillow in test_operations.py."""

import numpy as np
import torch
from PIL import Image, ImageOps

from mapolicy.transforms.pointwise import (
    histograms,
    invert_and_mask,
    scatter_count,
    stretch_tables,
    thresholds_and_masks,
)

LEVELS = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def test_every_threshold_and_every_mask() -> None:
    """Solarize inverts what is not below the threshold, also a threshold outside the levels or between two."""
    thresholds = np.array([-3, -0.5, 0, 0.5, 1, 1.5, 127, 128, 254.5, 255, 255.5, 256, 300], dtype=np.float64)
    dropped = np.array([0, 0.5, 1, 1.5, 2.5, 3.5, 7, 8], dtype=np.float64)
    counts = [len(thresholds), len(dropped)]
    parameters = torch.from_numpy(thresholds_and_masks(counts, np.concatenate([thresholds, dropped]), 16, 16))
    images = LEVELS.repeat(sum(counts), 1, 1, 1)
    invert_and_mask(images, counts, parameters, torch.zeros(1, dtype=torch.uint8))
    for image, threshold in zip(images, thresholds, strict=False):
        assert image.flatten().tolist() == [level if level < threshold else 255 - level for level in range(256)]
    for image, bits in zip(images[len(thresholds) :], dropped, strict=True):
        assert image.flatten().tolist() == [level >> round(bits) << round(bits) for level in range(256)]


def test_autocontrast_for_every_range_of_levels() -> None:
    pairs = torch.combinations(torch.arange(0, 256, 3, dtype=torch.uint8), with_replacement=True)
    tables = stretch_tables(pairs)
    assert len(pairs) > 3000
    for (low, high), table in zip(pairs.tolist(), tables, strict=True):
        ramp = np.arange(low, high + 1, dtype=np.uint8)[None]
        expected = np.asarray(ImageOps.autocontrast(Image.fromarray(ramp)))[0]
        assert table[low : high + 1].tolist() == expected.tolist()


def test_both_ways_to_count() -> None:
    """bincount where the CPU counts, scatter_add_ where a GPU does."""
    planes = torch.randint(0, 256, (7, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    histogram = histograms(planes)
    assert histogram.dtype == torch.int64
    for plane, counted in zip(planes, histogram, strict=True):
        assert counted.tolist() == np.bincount(plane.numpy(), minlength=256).tolist()
    positions = planes.int().view(-1)
    assert torch.equal(scatter_count(positions, 256), histogram.sum(0))
