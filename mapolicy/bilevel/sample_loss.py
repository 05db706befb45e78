"""The loss of one sample: minimised on training samples, and measured on meta-validation samples."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..errors import EnvironmentFault
from ..registries import LOSSES

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""From logits float [n, classes] and labels int64 [n] to one loss for each sample, float [n]."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of each sample, float [n]: the paper's loss, and the default."""
    return F.cross_entropy(logits, labels, reduction="none")


def find_loss(name: str) -> SampleLoss:
    """The loss of this name in `registries.LOSSES`; what a registered one returns is checked at each call.

    Raises:
        UsageError: there is none.
        EnvironmentFault: from the loss, where it does not return one float for each sample.
    """
    loss: SampleLoss = LOSSES.find(name)
    if LOSSES.entry(name).built_in:
        return loss

    def checked(logits: Tensor, labels: Tensor) -> Tensor:
        losses = loss(logits, labels)
        given: object = losses
        if not isinstance(given, Tensor) or not given.is_floating_point() or given.shape != labels.shape:
            found = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
            why = f"it returned {found}, expected a float for each sample, [{len(labels)}]"
            raise EnvironmentFault(f"loss {name}", why, "mend the function that registers it")
        return losses

    return checked
