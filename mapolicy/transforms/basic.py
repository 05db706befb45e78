"""Flip, pad and crop, Cutout and normalisation of uint8 batches: what surrounds a policy in the pipeline."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.shard import Shard, whole_batch


def flip(images: Tensor, generator: torch.Generator, shard: Shard | None = None) -> Tensor:
    """Mirror each image left to right with probability 1/2. uint8 [B, C, H, W]; `shard`: its rows of the batch."""
    shard = shard or whole_batch(len(images))
    chosen = shard.of(torch.randint(0, 2, (shard.whole,), generator=generator))
    return _blended(images, images.flip(3), _everywhere(chosen, images)[:, None, None, None])


def pad_and_crop(images: Tensor, padding: int, generator: torch.Generator, shard: Shard | None = None) -> Tensor:
    """Pad with black on every side, then cut each image out at a random place. uint8 [B, C, H, W]; `shard` as above."""
    batch, channels, height, width = images.shape
    shard = shard or whole_batch(batch)
    rows, columns = shard.of(torch.randint(0, 2 * padding + 1, (2, shard.whole), generator=generator), dim=1)
    tall, wide = height + 2 * padding, width + 2 * padding
    padded = images.new_zeros(batch, channels, tall, wide)
    padded[..., padding : padding + height, padding : padding + width] = images
    # Each row of an image is one window of the flat buffer, so that what is copied lies together.
    first = (torch.arange(batch) * channels * tall + rows) * wide + columns
    within = (torch.arange(channels)[:, None] * tall + torch.arange(height)) * wide
    first, within = (part.to(images.device, non_blocking=True) for part in (first, within))
    windows = padded.view(-1).as_strided((padded.numel() - width + 1, width), (1, 1))
    return windows.index_select(0, (first[:, None, None] + within).flatten()).view(images.shape)


def cutout(images: Tensor, side: int, fill: Tensor, generator: torch.Generator, shard: Shard | None = None) -> Tensor:
    """Hide a square of each image, its centre anywhere, so that a part of it may lie outside. uint8 [B, C, H, W].

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017): rows
    y - side // 2 up to but not including y - side // 2 + side.

    Args:
        images: left as they are.
        side: pixels.
        fill: uint8 [C]; the mean colour, which normalises to (about) zero as in the source.
        generator: on the CPU.
        shard: which rows of the batch the images are; None for all of it.
    """
    _, _, height, width = images.shape
    shard = shard or whole_batch(len(images))
    rows, columns = (
        shard.of(torch.randint(0, extent, (shard.whole, 1), generator=generator)) for extent in (height, width)
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
