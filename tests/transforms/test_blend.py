"""The blends' degenerate images against whole-number arithmetic; the enhancers meet Pillow in test_operations.py."""

import numpy as np
import torch
from PIL import Image, ImageFilter

from mapolicy.transforms.blend import THIRTEENTH, luminance, smooth


def test_grey_of_every_colour_on_a_grid() -> None:
    levels = torch.tensor([*range(0, 256, 5), 1, 2, 127, 128, 254], dtype=torch.uint8)
    colours = torch.cartesian_prod(levels, levels, levels).T[None, :, :, None]
    red, green, blue = colours[0, :, :, 0].long()
    expected = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    assert luminance(colours).flatten().long().tolist() == expected.tolist()


def test_every_sum_is_divided_by_13_as_by_integers() -> None:
    sums = torch.arange(13 * 255 + 7)
    assert torch.equal(sums.float().mul_(THIRTEENTH).floor_().long(), sums // 13)


def test_smooth_is_pillows_filter_for_every_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    for height in range(1, 7):
        for width in range(1, 7):
            # Extreme neighbours: what reaches over an edge would be seen.
            planes = torch.randint(0, 2, (2, 3, height, width), generator=generator).mul_(255).to(torch.uint8)
            smoothed = smooth(planes)
            for plane, got in zip(planes.flatten(0, 1), smoothed.flatten(0, 1), strict=True):
                expected = np.array(Image.fromarray(plane.numpy()).filter(ImageFilter.SMOOTH))
                assert torch.equal(got.to(torch.uint8), torch.from_numpy(expected)), (height, width)
