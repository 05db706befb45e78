"""Which images make up which batch: a function of seed, epoch and step alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import RunConfig
from ..runtime.random import generator

Plan = Sequence[tuple[int, Tensor]]  # the batches of an epoch: step and positions int64 [b] in the split


def training_plan(config: RunConfig, images: int, epoch: int, start: int = 0) -> Plan:
    """The batches of one epoch: (step, int64 [batch_size] positions), every image at most once, the rest left out.

    Args:
        config: its seed and batch_size are used.
        images: size of the split.
        epoch: counted from 0.
        start: batches to leave out at the front.
    """
    per_epoch = images // config.batch_size
    order = torch.randperm(images, generator=generator(config.seed, config.stage, "order", epoch))
    batches = order[: per_epoch * config.batch_size].split(config.batch_size)
    return [(epoch * per_epoch + number, batch) for number, batch in enumerate(batches)][start:]


def validation_plan(config: RunConfig, images: int, steps: list[int]) -> Plan:
    """For each step a random part of the meta-validation split, int64 [validation_batch_size] or all of it."""
    return [
        (
            step,
            torch.randperm(images, generator=generator(config.seed, config.stage, "validation", step))[
                : config.validation_batch_size
            ].clone(),  # a part of a permutation would keep all of it
        )
        for step in steps
    ]
