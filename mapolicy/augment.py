"""TrivialAugment, RandAugment and uniformly drawn transformations for uint8 batches, a choice for each image.

    from mapolicy.augment import TrivialAugmentWide

The public home of `transforms.auto_augment`.
"""

from .transforms.auto_augment import (
    AppliedOperations,
    RandAugment,
    TrivialAugmentWide,
    UniformTransformations,
    draw_operations,
)

__all__ = ["AppliedOperations", "RandAugment", "TrivialAugmentWide", "UniformTransformations", "draw_operations"]
