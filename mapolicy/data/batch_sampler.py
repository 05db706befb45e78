"""Which images are in which batch; it depends on seed, stage, epoch and step only."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import RunConfig
from ..runtime.random import generator

Plan = Sequence[tuple[int, Tensor]]  # for each batch: iteration number, and int64 [b] positions in the split


def training_plan(config: RunConfig, images: int, epoch: int, start: int = 0) -> Plan:
    """The batches of one epoch: the images in random order, without an incomplete last batch.

    Args:
        config: its seed, stage and batch_size are used.
        images: number of images in the split.
        epoch: from 0.
        start: number of batches to skip at the beginning of the epoch.
    """
    per_epoch = images // config.batch_size
    order = torch.randperm(images, generator=generator(config.seed, config.stage, "order", epoch))
    batches = order[: per_epoch * config.batch_size].split(config.batch_size)
    return [(epoch * per_epoch + number, batch) for number, batch in enumerate(batches)][start:]


def validation_plan(config: RunConfig, images: int, steps: list[int]) -> Plan:
    """For each step a random batch of the meta-validation split, or all of it where it is smaller than a batch.

    Args:
        config: its seed, stage and validation_batch_size are used.
        images: number of images in the split.
        steps: iteration numbers.
    """
    return [
        (
            step,
            torch.randperm(images, generator=generator(config.seed, config.stage, "validation", step))[
                : config.validation_batch_size
            ].clone(),  # a view would keep the whole permutation in memory
        )
        for step in steps
    ]
