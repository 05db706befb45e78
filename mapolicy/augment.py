"""Augmentations of uint8 batches with a draw for each image: TrivialAugment, RandAugment, crops and others.

    from mapolicy.augment import TrivialAugmentWide

The public home of `transforms.auto_augment` and `transforms.random_resized_crop`.
"""

from .transforms.auto_augment import (
    AppliedOperations,
    RandAugment,
    TrivialAugmentWide,
    UniformTransformations,
    draw_operations,
)
from .transforms.random_resized_crop import RandomResizedCrop

__all__ = [
    "AppliedOperations",
    "RandAugment",
    "RandomResizedCrop",
    "TrivialAugmentWide",
    "UniformTransformations",
    "draw_operations",
]
