"""Which images are in which batch; it depends on seed, stage, epoch and step only."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from ..config import RunConfig
from ..distributed import communicator
from ..errors import UsageError
from ..runtime.random import generator

ENOUGH_BATCHES = 5  # of an epoch
USUAL_BATCH, SMALLEST_BATCH = 128, 16
NOTABLE_SHARE = 0.1  # of an epoch's images: more left out is worth a word

Plan = Sequence[tuple[int, Tensor]]  # for each batch: iteration number, and int64 [b] positions in the split


def batches_per_epoch(config: RunConfig, images: int) -> int:
    """Batches of an epoch over so many images."""
    whole, last = _sizes(config, images)
    return whole + bool(last)


def left_out(config: RunConfig, images: int) -> int:
    """Images that an epoch leaves out because they are too few for a batch; they are others in each epoch."""
    whole, last = _sizes(config, images)
    return images - whole * config.batch_size - last


def _sizes(config: RunConfig, images: int) -> tuple[int, int]:
    """How many whole batches an epoch has, and the size of its last, incomplete one; 0 where there is none."""
    whole, rest = divmod(images, config.batch_size)
    parts = config.accumulate * communicator().size  # a batch divides into equal parts, and a part has two images
    rest -= rest % parts
    return whole, rest if config.last_batch == "keep" and rest >= 2 * parts else 0


def fitting_batch(images: int, parts: int = 1) -> int:
    """The size of a batch that suits so many training images.

    Args:
        images: number of training images.
        parts: equal parts that a batch is divided into: processes times micro-batches.
    """
    batches = max(1, -(-images // USUAL_BATCH), min(ENOUGH_BATCHES, images // SMALLEST_BATCH))
    return max(2, images // batches // parts) * parts


def check_parts(images: int, parts: int) -> None:
    """Check that so many training images make at least one batch of so many parts.

    Raises:
        UsageError: they are too few; no batch size would help.
    """
    if images < 2 * parts:
        why = f"{parts} parts of a batch need {2 * parts} training images, there are {images}"
        raise UsageError("accumulate", why, f"lower it, so that there are {max(1, images // 2)} parts at most")


def training_plan(config: RunConfig, images: int, epoch: int, start: int = 0, labels: Tensor | None = None) -> Plan:
    """The batches of one epoch: the images in random order, or drawn so that each class is equally frequent.

    Args:
        config: its seed, stage, batch_size, last_batch, accumulate and balance are used.
        images: number of images in the split.
        epoch: from 0.
        start: number of batches to skip at the beginning of the epoch.
        labels: int64 [images] of the split; needed where `balance` is `sampler`.
    """
    draws = generator(config.seed, config.stage, "order", epoch)
    if config.balance == "sampler":
        assert labels is not None, "classes are drawn by their labels"
        rarity = (1 / labels.bincount()[labels].double()).tolist()
        order = torch.tensor(list(WeightedRandomSampler(rarity, images, replacement=True, generator=draws)))
    else:
        order = torch.randperm(images, generator=draws)
    whole, last = _sizes(config, images)
    batches = order[: whole * config.batch_size + last].split(config.batch_size)
    first = epoch * batches_per_epoch(config, images)
    return [(first + number, batch) for number, batch in enumerate(batches)][start:]


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
