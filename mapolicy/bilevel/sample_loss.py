"""The loss of one sample: minimised on training samples, and measured on meta-validation samples."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""From logits float [n, classes] and labels int64 [n] to one loss for each sample, float [n]."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of each sample, float [n]: the paper's loss, and the default."""
    return F.cross_entropy(logits, labels, reduction="none")
