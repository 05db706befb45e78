"""Weight against magnitude: how the weight of an image changes with the magnitude of each operation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .sample_weights import SampleWeights
from .tables import Numbers

LEVELS = tuple(float(level) for level in range(0, 11, 2))
IMAGES = 16


@dataclass(frozen=True)
class MagnitudeResponse:
    """Weight of an image under one operation followed by Identity, over the weight of the unchanged image.

    Attributes:
        names: names of the K operations.
        has_magnitude: for each operation, whether it has a magnitude.
        levels: the L levels, 0 to 10.
        low, median, high: float64 [K, L], quartiles over the images; constant for operations without a magnitude.
        images: number of images.
        real: the images are the data set's, not synthetic ones.
    """

    names: Sequence[str]
    has_magnitude: Sequence[bool]
    levels: Sequence[float]
    low: Numbers
    median: Numbers
    high: Numbers
    images: int
    real: bool


def magnitude_response(sample_weights: SampleWeights, images: Tensor, real: bool) -> MagnitudeResponse:
    """Measure the response on the first `IMAGES` images, with each direction on half of them.

    Args:
        sample_weights: of the bundle.
        images: uint8 [n, C, S, S].
        real: the images are the data set's, not synthetic ones.
    """
    images = images[:IMAGES].to(sample_weights.device)
    signs = torch.arange(len(images)) % 2 * 2.0 - 1
    space = sample_weights.space
    low, median, high = (np.ones((space.size, len(LEVELS))) for _ in range(3))
    unchanged = sample_weights.operation_logits(images, sample_weights.identity, torch.zeros(len(images)))
    for operation, has_magnitude in enumerate(space.has_magnitude):
        for column, level in enumerate(LEVELS if has_magnitude else LEVELS[:1]):
            logits = sample_weights.operation_logits(images, operation, level * signs)
            ratios = (F.logsigmoid(logits) - F.logsigmoid(unchanged)).exp().cpu().numpy()
            columns = column if has_magnitude else slice(None)
            low[operation, columns], median[operation, columns], high[operation, columns] = np.quantile(
                ratios, (0.25, 0.5, 0.75)
            )
    return MagnitudeResponse(space.names, space.has_magnitude, LEVELS, low, median, high, len(images), real)
