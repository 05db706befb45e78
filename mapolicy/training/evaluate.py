"""Accuracy of a network on a split."""

from dataclasses import dataclass

import torch
from torch import nn

from ..data.splits import Split
from ..distributed import ALONE, Communicator
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
    training = network.training
    network.eval()
    first = fifth = 0
    batches = list(enumerate(torch.arange(len(split)).split(batch_size)))[communicator.rank :: communicator.size]
    try:
        with torch.inference_mode():
            for images, labels in split.batches(batches):
                logits = network(pipeline.normalise(images))
                ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
                first += int(ranked[:, 0].sum())
                fifth += int(ranked.sum())
    finally:
        network.train(training)
    first, fifth = communicator.sum([torch.tensor([first, fifth])])[0].tolist()
    return Accuracy(top1=100 * first / len(split), top5=100 * fifth / len(split))
