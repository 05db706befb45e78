"""MixUp and CutMix of a batch by timm's `Mixup`, with random numbers that follow from the iteration's number."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from ..config import RunConfig
from ..runtime.random import seed_for


def mixes(config: RunConfig) -> bool:
    """Whether a run mixes its images."""
    return config.mixup > 0 or config.cutmix > 0


def mix(
    config: RunConfig, inputs: Tensor, labels: Tensor, weights: Tensor, classes: int, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each image of a batch with its opposite, the first with the last; a lone image in the middle stays.

    Labels and weights are mixed in the same shares as the images. All processes draw the same shares, and each mixes
    its own part of the batch.

    Args:
        config: its mixup, cutmix, mix_probability, seed and stage are used.
        inputs: float [n, C, H, W], normalised; changed in place.
        labels: int64 [n].
        weights: float [n].
        classes: number of classes.
        step: iteration.

    Returns:
        Images, labels float [n, classes] and weights float [n].
    """
    count = len(labels)
    even = count - count % 2  # timm pairs images
    shares = torch.eye(count, device=inputs.device)  # [i, j]: share of image j in mixed image i
    mixer = Mixup(config.mixup, config.cutmix, prob=config.mix_probability, label_smoothing=0.0, num_classes=even)
    if even:
        with _numpy_seeded(seed_for(config.seed, config.stage, "mixup", step)):
            mixed, shares[:even, :even] = mixer(inputs[:even], torch.arange(even, device=inputs.device))
        inputs[:even] = mixed
    targets = shares @ F.one_hot(labels, classes).to(shares.dtype)
    return inputs, targets, shares.to(weights.dtype) @ weights


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Inside the block numpy's global generator, which timm draws from, has this seed; afterwards its old state."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
