"""Synthetic images: smooth colours with noise."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.random import generator

PATCHES = 4  # of independent colour along a side
NOISE = 8.0  # standard deviation, levels of 255


def synthetic_images(count: int, side: int, seed: int = 0) -> Tensor:
    """uint8 [count, 3, side, side] on the CPU; equal arguments give equal images."""
    draws = generator(seed, "bench", "images", side)
    patches = torch.rand(count, 3, PATCHES, PATCHES, generator=draws) * 255
    smooth = F.interpolate(patches, size=(side, side), mode="bicubic", align_corners=False)
    noise = torch.randn(smooth.shape, generator=draws) * NOISE
    return (smooth + noise).clamp(0, 255).to(torch.uint8)
