"""Flip, pad and crop, Cutout and normalisation of uint8 batches: the steps before and after a policy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.shard import Shard, whole_batch


def flip(images: Tensor, generator: torch.Generator, shard: Shard | None = None) -> Tensor:
    """Mirror each image left to right with probability 1/2.

    Args:
        images: uint8 [B, C, H, W].
        generator: on the CPU.
        shard: which rows of the batch the images are; None for all of it.
    """
    shard = shard or whole_batch(len(images))
    chosen = shard.of(torch.randint(0, 2, (shard.whole,), generator=generator))
    return _select(images, images.flip(3), _bit_mask(chosen, images)[:, None, None, None])


def pad_and_crop(images: Tensor, padding: int, generator: torch.Generator, shard: Shard | None = None) -> Tensor:
    """Pad each image with black on every side, then crop it to its size at a random position.

    Args:
        images: uint8 [B, C, H, W].
        padding: pixels on each side.
        generator: on the CPU.
        shard: which rows of the batch the images are; None for all of it.
    """
    batch, channels, height, width = images.shape
    shard = shard or whole_batch(batch)
    rows, columns = shard.of(torch.randint(0, 2 * padding + 1, (2, shard.whole), generator=generator), dim=1)
    tall, wide = height + 2 * padding, width + 2 * padding
    padded = images.new_zeros(batch, channels, tall, wide)
    padded[..., padding : padding + height, padding : padding + width] = images
    # Each row of a cropped image is one window of the flat buffer, so a copy reads contiguous memory.
    first = (torch.arange(batch) * channels * tall + rows) * wide + columns
    within = (torch.arange(channels)[:, None] * tall + torch.arange(height)) * wide
    first, within = (indices.to(images.device, non_blocking=True) for indices in (first, within))
    windows = padded.view(-1).as_strided((padded.numel() - width + 1, width), (1, 1))
    return windows.index_select(0, (first[:, None, None] + within).flatten()).view(images.shape)


def cutout(images: Tensor, side: int, fill: Tensor, generator: torch.Generator, shard: Shard | None = None) -> Tensor:
    """Fill a square at a random position of each image; its centre is inside the image, a part of it may be outside.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017): rows
    y - side // 2 up to but not including y - side // 2 + side.

    Args:
        images: uint8 [B, C, H, W]; not changed.
        side: of the square, in pixels.
        fill: uint8 [C]. The mean colour normalises to about zero, as in the source.
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
    hidden_rows, hidden_columns = (_bit_mask((at >= 0) & (at < side), images) for at in (down, across))
    return _select(images, fill[:, None, None], hidden_rows[:, None, :, None] & hidden_columns[:, None, None, :])


def _bit_mask(chosen: Tensor, images: Tensor) -> Tensor:
    """Booleans as a uint8 mask of all or no bits, on the device of the images, without waiting for the device."""
    return chosen.to(torch.uint8).neg_().to(images.device, non_blocking=True)


def _select(images: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """`torch.where(mask, others, images)` for a mask of all or no bits; bitwise is faster."""
    return (images ^ others).bitwise_and_(mask).bitwise_xor_(images)


class Normalisation:
    """Converts uint8 images to the normalised float32 input of a network.

    Args:
        mean, std: one number for each channel, for pixels in [0, 1].
        device: of the images.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._mean = torch.tensor(mean, device=device)[:, None, None] * 255
        self._scale = 1 / (torch.tensor(std, device=device)[:, None, None] * 255)

    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 [B, C, H, W] to (images / 255 - mean) / std, float32 in channels-last memory format."""
        return (images - self._mean).mul_(self._scale).contiguous(memory_format=torch.channels_last)

    def mean_colour(self) -> Tensor:
        """The mean as a uint8 colour [C]."""
        return self._mean.flatten().round().to(torch.uint8)
