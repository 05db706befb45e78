"""From uint8 images to a network's input: base augmentation, policy, Cutout, normalisation. Both stages use this one.

Order and sizes: MetaAugment (Zhou et al., AAAI 2021), section "Experiments": flip, zero-pad and crop, transformation,
Cutout of 16 x 16 on CIFAR; the transformation alone on Omniglot; on ImageNet it follows the random resized crop
(which happens where images are decoded) and the flip.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import RunConfig
from .distributed import ALONE, Communicator, Part, all_of
from .policies import Augmentation
from .runtime import generator
from .transformation import Transformation

CROP_PADDING_SHARE = 1 / 8  # 4 of 32 pixels


@dataclass(frozen=True)
class AugmentedBatch:
    """A batch on its way into the network; n counts all copies of all images.

    Attributes:
        images: uint8 [n, C, H, W], augmented.
        inputs: float32 [n, C, H, W], the same normalised.
        labels: int64 [n].
        transformation: of n images, or None where the policy has none of ours.
    """

    images: Tensor
    inputs: Tensor
    labels: Tensor
    transformation: Transformation | None


def flip(images: Tensor, generator: torch.Generator, part: Part | None = None) -> Tensor:
    """Mirror each image left to right with probability 1/2. uint8 [B, C, H, W]; `part`: which rows of a batch."""
    part = part or all_of(len(images))
    chosen = part.of(torch.randint(0, 2, (part.whole,), generator=generator))
    return _blended(images, images.flip(3), _everywhere(chosen, images)[:, None, None, None])


def pad_and_crop(images: Tensor, padding: int, generator: torch.Generator, part: Part | None = None) -> Tensor:
    """Pad with black on every side, then cut each image out at a random place. uint8 [B, C, H, W]; `part` as above."""
    batch, channels, height, width = images.shape
    part = part or all_of(batch)
    rows, columns = part.of(torch.randint(0, 2 * padding + 1, (2, part.whole), generator=generator), dim=1)
    tall, wide = height + 2 * padding, width + 2 * padding
    padded = images.new_zeros(batch, channels, tall, wide)
    padded[..., padding : padding + height, padding : padding + width] = images
    # Each row of an image is one window of the flat buffer, so that what is copied lies together.
    first = (torch.arange(batch) * channels * tall + rows) * wide + columns
    within = (torch.arange(channels)[:, None] * tall + torch.arange(height)) * wide
    first, within = (part.to(images.device, non_blocking=True) for part in (first, within))
    windows = padded.view(-1).as_strided((padded.numel() - width + 1, width), (1, 1))
    return windows.index_select(0, (first[:, None, None] + within).flatten()).view(images.shape)


def cutout(images: Tensor, side: int, fill: Tensor, generator: torch.Generator, part: Part | None = None) -> Tensor:
    """Hide a square of each image, its centre anywhere, so that a part of it may lie outside. uint8 [B, C, H, W].

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017): rows
    y - side // 2 up to but not including y - side // 2 + side.

    Args:
        images: left as they are.
        side: pixels.
        fill: uint8 [C]; the mean colour, which normalises to (about) zero as in the source.
        generator: on the CPU.
        part: which rows of a batch the images are; None for all of it.
    """
    _, _, height, width = images.shape
    part = part or all_of(len(images))
    rows, columns = (
        part.of(torch.randint(0, extent, (part.whole, 1), generator=generator)) for extent in (height, width)
    )
    down = torch.arange(height) - (rows - side // 2)
    across = torch.arange(width) - (columns - side // 2)
    hidden_rows, hidden_columns = (_everywhere((at >= 0) & (at < side), images) for at in (down, across))
    return _blended(images, fill[:, None, None], hidden_rows[:, None, :, None] & hidden_columns[:, None, None, :])


def _everywhere(chosen: Tensor, images: Tensor) -> Tensor:
    """A choice of 0 or 1 as a mask of no or all bits, uint8, where the images are; the device is not waited for."""
    return chosen.to(torch.uint8).neg_().to(images.device, non_blocking=True)


def _blended(images: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """The other pixels where the mask has all bits, the images' where it has none: bitwise, many pixels at once."""
    return (images ^ others).bitwise_and_(mask).bitwise_xor_(images)


class Normalisation:
    """From uint8 images to the float32 numbers that a network takes.

    Args:
        mean, std: one float per channel, for pixels in [0, 1].
        device: of the images.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._mean = torch.tensor(mean, device=device)[:, None, None] * 255
        self._scale = 1 / (torch.tensor(std, device=device)[:, None, None] * 255)

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 [B, C, H, W], channels-last: pixels / 255, less the mean, over std. `images`: in [0, 255]."""
        return (images - self._mean).mul_(self._scale).contiguous(memory_format=torch.channels_last)

    def mean_colour(self) -> Tensor:
        """The mean as a colour, uint8 [C]."""
        return self._mean.flatten().round().to(torch.uint8)


@dataclass(frozen=True)
class PipelineSettings:
    """What the pipeline reads of a run's configuration, for use without a run; the fields are `RunConfig`'s."""

    base_augmentation: str
    cutout: int
    fill: str
    copies: int
    seed: int
    stage: str


class Pipeline:
    """Everything between the data set and the network, drawn from streams of its own.

    Args:
        config: of the run; its base_augmentation, cutout, fill, copies, seed and stage are used.
        mean, std: one float per channel in [0, 1] units, for the normalisation and the fill.
        device: of the images.
        communicator: to the processes that have the other parts of a batch.
    """

    def __init__(
        self,
        config: RunConfig | PipelineSettings,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        communicator: Communicator = ALONE,
    ) -> None:
        self.config, self._communicator = config, communicator
        self.mean, self.std, self.device = tuple(mean), tuple(std), device
        self._normalisation = Normalisation(mean, std, device)
        self._mean_colour = self._normalisation.mean_colour()
        self._fill = self._mean_colour if config.fill == "mean" else torch.zeros_like(self._mean_colour)

    def with_config(self, config: RunConfig) -> "Pipeline":
        """The same data, another configuration."""
        return Pipeline(config, self.mean, self.std, self.device, self._communicator)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32 with mean 0 and deviation 1 over the training split."""
        return self._normalisation(images)

    def augment(self, images: Tensor, labels: Tensor, augmentation: Augmentation, step: int) -> AugmentedBatch:
        """A training batch of `copies` augmentations of every image.

        Args:
            images: uint8 [B, C, H, W], this process's part of the batch.
            labels: int64 [B].
            augmentation: the policy's part.
            step: iteration; with the seed it fixes every draw.
        """
        images, transformation = self.transform(images, augmentation, step)
        return AugmentedBatch(
            images=images,
            inputs=self.normalise(images),
            labels=_repeated(labels, self.config.copies),
            transformation=transformation,
        )

    def transform(self, images: Tensor, augmentation: Augmentation, step: int) -> tuple[Tensor, Transformation | None]:
        """The part of `augment` that stays uint8: the augmented images, and their transformations."""
        config = self.config
        images = _repeated(images, config.copies)
        part = self._communicator.part(len(images) * self._communicator.size)
        images = self._base(images, generator(config.seed, config.stage, "base", step), part)
        images, transformation = augmentation(
            images, self._fill, generator(config.seed, config.stage, "transformation", step), part
        )
        if config.cutout:
            draws = generator(config.seed, config.stage, "cutout", step)
            images = cutout(images, config.cutout, self._mean_colour, draws, part)
        return images, transformation

    def _base(self, images: Tensor, draws: torch.Generator, part: Part) -> Tensor:
        if self.config.base_augmentation == "none":
            return images
        images = flip(images, draws, part)
        if self.config.base_augmentation == "random_resized_crop":
            return images
        return pad_and_crop(images, round(images.shape[-1] * CROP_PADDING_SHARE), draws, part)


def _repeated(tensor: Tensor, copies: int) -> Tensor:
    return tensor if copies == 1 else tensor.repeat_interleave(copies, dim=0)
