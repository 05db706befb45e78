"""A network on a split: its accuracy, or everything that is known of it."""

from dataclasses import dataclass

import torch
from torch import nn

from ..data.splits import Split
from ..distributed import ALONE, Communicator
from ..inference.measures import Evaluation, Outcomes
from ..policy.pipeline import Pipeline


@dataclass(frozen=True)
class Accuracy:
    """Shares of images, in per cent, whose label is the likeliest class or among the five likeliest."""

    top1: float
    top5: float


def evaluate(
    network: nn.Module, split: Split, pipeline: Pipeline, batch_size: int, communicator: Communicator = ALONE
) -> Accuracy:
    """The network's accuracy on a split, in evaluation mode, without augmentation.

    Args:
        network: takes normalised images; its mode is put back.
        split: uint8 images and labels.
        pipeline: whose normalisation the network was trained with.
        batch_size: images in one forward.
        communicator: to the processes that have the same network; each takes its share of the forwards.
    """
    found = outcomes(network, split, pipeline, batch_size, communicator)
    first, fifth = int((found.predicted == split.labels).sum()), int(found.in_top5.sum())
    return Accuracy(top1=100 * first / len(split), top5=100 * fifth / len(split))


def evaluate_fully(
    network: nn.Module,
    split: Split,
    pipeline: Pipeline,
    batch_size: int,
    classes: tuple[str, ...],
    communicator: Communicator = ALONE,
) -> Evaluation:
    """The same with figures for each class and the calibration; `classes` are their names, by label."""
    found = outcomes(network, split, pipeline, batch_size, communicator)
    return Evaluation.of(split.labels, found, classes)


def outcomes(
    network: nn.Module, split: Split, pipeline: Pipeline, batch_size: int, communicator: Communicator = ALONE
) -> Outcomes:
    """What the network says of each image of a split, on the CPU; arguments as `evaluate`."""
    training = network.training
    network.eval()
    whole = list(enumerate(torch.arange(len(split)).split(batch_size)))
    batches = whole[communicator.rank :: communicator.size]
    predicted, in_top5 = torch.zeros(2, len(split), dtype=torch.int64)
    confidence = torch.zeros(len(split), dtype=torch.float64)
    try:
        with torch.inference_mode():
            for (_, positions), (images, labels) in zip(batches, split.batches(batches), strict=True):
                part = Outcomes.of(network(pipeline.normalise(images)), labels)
                predicted[positions], in_top5[positions] = part.predicted.cpu(), part.in_top5.cpu()
                confidence[positions] = part.confidence.cpu()
    finally:
        network.train(training)
    # The images of other processes are zeros in this one's tensors, so the sums are those of the whole split.
    summed = communicator.sum([predicted, in_top5, confidence])
    return Outcomes(predicted=summed[0], in_top5=summed[1], confidence=summed[2])
