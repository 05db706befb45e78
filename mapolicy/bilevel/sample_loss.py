"""The loss of one sample: minimised on training samples, and measured on meta-validation samples."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import RunConfig
from ..errors import EnvironmentFault
from ..registries import LOSSES

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""From logits float [n, classes] and labels int64 [n] to one loss for each sample, float [n]."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of each sample, float [n]: the paper's loss, and the default."""
    return F.cross_entropy(logits, labels, reduction="none")


def training_loss(config: RunConfig, labels: Tensor, classes: int, device: torch.device) -> SampleLoss:
    """The loss of a training sample: `training_loss`, with `label_smoothing` and with classes weighed by `balance`.

    Cross entropy also takes labels of several classes, float [n, classes], as MixUp makes them. A class's weight is
    images / (classes x its images), whose mean over the images is 1.

    Args:
        config: of the run.
        labels: int64 [images] of the training split.
        classes: number of classes.
        device: of the losses.

    Raises:
        UsageError: there is no such loss.
    """
    loss = find_loss(config.training_loss)
    weight = class_weights(labels, classes).to(device) if config.balance == "loss" else None
    if loss is not cross_entropy:
        return loss if weight is None else lambda logits, targets: loss(logits, targets) * weight[targets]
    if weight is None and not config.label_smoothing:
        return loss
    return partial(F.cross_entropy, weight=weight, label_smoothing=config.label_smoothing, reduction="none")


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Inverse frequency of each class, float [classes], with mean 1 over the labels; 0 for a class without images."""
    counts = labels.bincount(minlength=classes)
    return torch.where(counts > 0, len(labels) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)


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
