"""Random resized crops for uint8 batches, and their boxes, which follow from seed, image and step.

    from mapolicy.augment import RandomResizedCrop

    crop = RandomResizedCrop(224, seed=0)
    batch = crop(images, indices, step)  # uint8 [B, C, 224, 224]

Pixels are those of Pillow's `resize((S, S), BILINEAR, box=box)` within 1 level: both round after each of two passes,
and Pillow makes the vertical one first for some boxes.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from ..runtime.random import generator
from ..runtime.threads import images_in_ranges

CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # the defaults of torchvision.transforms.RandomResizedCrop
ATTEMPTS = 10
CHUNK = 2**26  # channel values that other devices take at once

Size = tuple[int, int]  # width, height


class RandomResizedCrop(nn.Module):
    """A random part of each image, resized to a square; the same for equal seed, stage, image number and step.

    Args:
        size: side of the square output, pixels.
        seed: of the draws.
        stage: of the run; part of the seed.
    """

    def __init__(self, size: int, seed: int = 0, stage: str = "train") -> None:
        super().__init__()
        if type(size) is not int or size < 1:
            raise ValueError(f"size is {size!r}, expected a whole number of at least 1")
        self.size, self.seed, self.stage = size, seed, stage

    @override
    def extra_repr(self) -> str:
        return f"size={self.size}, seed={self.seed}, stage={self.stage!r}"

    def boxes(self, indices: Sequence[int] | Tensor, step: int, sizes: Sequence[Size]) -> list[tuple[int, ...]]:
        """Left, top, right and bottom of each image's box, in pixels of an image of that width and height."""
        numbers = indices.tolist() if isinstance(indices, Tensor) else indices
        return [
            random_crop_box(*size, generator(self.seed, self.stage, f"crop/{index}", step))
            for index, size in zip(numbers, sizes, strict=True)
        ]

    @override
    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        indices: Sequence[int] | Tensor,
        step: int,
        sizes: Sequence[Size] | None = None,
    ) -> Tensor:
        """Crop each image.

        Args:
            images: uint8 [B, C, H, W], or B images uint8 [C, H, W] of different sizes, with C = 1 or 3.
            indices: B image numbers in the data set.
            step: the iteration, or another counter.
            sizes: width and height of each image before it was made smaller; boxes are drawn in those pixels. None: the
                images have their own size.

        Returns:
            uint8 [B, C, S, S] on the images' device.

        Raises:
            TypeError, ValueError: as `resize_boxes`, or indices, step and sizes are no whole numbers, or not as many as
                images.
        """
        _check_images(images)
        own = [(image.shape[-1], image.shape[-2]) for image in images]
        _check_numbers(own, indices, step, sizes)
        drawn = self.boxes(indices, step, own if sizes is None else sizes)
        return resize_boxes(images, scaled_boxes(drawn, own if sizes is None else sizes, own), self.size)


def random_crop_box(width: int, height: int, draws: torch.Generator) -> tuple[int, int, int, int]:
    """A box with 8 to 100 % of the area and a ratio of 3/4 to 4/3, uniform in area and in the ratio's logarithm.

    Source: torchvision.transforms.RandomResizedCrop.get_params, with its ten attempts and its central fall-back.

    Returns:
        Left, top, right, bottom in pixels.
    """
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    for area, ratio, across, down in torch.rand(ATTEMPTS, 4, generator=draws, dtype=torch.float64).tolist():
        target = width * height * (CROP_AREA[0] + area * (CROP_AREA[1] - CROP_AREA[0]))
        aspect = math.exp(low + ratio * (high - low))
        wide, tall = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(across * (width - wide + 1)), int(down * (height - tall + 1))
            return left, top, left + wide, top + tall
    if width / height < CROP_RATIO[0]:
        wide, tall = width, max(1, round(width / CROP_RATIO[0]))
    elif width / height > CROP_RATIO[1]:
        wide, tall = max(1, round(height * CROP_RATIO[1])), height
    else:
        wide, tall = width, height
    wide, tall = min(wide, width), min(tall, height)
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def scaled_boxes(boxes: Sequence[Sequence[float]], drawn: Sequence[Size], kept: Sequence[Size]) -> Tensor:
    """Boxes of images of the `drawn` widths and heights as boxes of the same images at the `kept` ones, float32 [B, 4].

    Single precision is what Pillow computes with.
    """
    scale = np.array(kept, np.float64).reshape(-1, 2) / np.array(drawn, np.float64).reshape(-1, 2)
    scaled = np.array(boxes, np.float64).reshape(-1, 4) * np.tile(scale, 2)
    return torch.from_numpy(scaled.astype(np.float32))


def resize_boxes(images: Tensor | Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of each image and resize it, antialiased and bilinear.

    Args:
        images: uint8 [B, C, H, W], or B images uint8 [C, H, W] of different sizes, with C = 1 or 3; not changed.
        boxes: floating point [B, 4]: left, top, right, bottom in pixels, inside the image.
        size: side S of the output.

    Returns:
        uint8 [B, C, S, S] on the images' device.

    Raises:
        TypeError: the images are no uint8 tensors.
        ValueError: a wrong shape, images on different devices, or a box that is empty or not inside its image.
    """
    _check_images(images)
    boxes = boxes.detach().to("cpu", torch.float32)
    sizes = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64).reshape(-1, 2)
    _check_boxes(boxes, sizes)
    device, channels = (images.device, images.shape[1]) if isinstance(images, Tensor) else _of_first(images)
    result = torch.empty(len(images), channels, size, size, dtype=torch.uint8, device=device)
    if device.type != "cpu":
        _by_torch(images, boxes, result)
        return result
    whole = images if isinstance(images, Tensor) else torch.cat([image.reshape(-1) for image in images] or [result])
    starts = (sizes.prod(1) * channels).cumsum(0) - sizes.prod(1) * channels
    resize_flat(whole.contiguous().reshape(-1).numpy(), starts.numpy(), sizes.numpy(), boxes.numpy(), result.numpy())
    return result


def resize_flat(
    pixels: Any, starts: Any, sizes: Any, boxes: Any, result: Any, interleaved: bool = False, cut: bool = False
) -> None:
    """`resize_boxes` on a CPU from images in one array; as `crop_flat`, with boxes float32 [B, 4]."""
    crop_flat(pixels, starts, sizes, lambda first, last: boxes[first:last], result, interleaved, cut)


def crop_flat(
    pixels: Any,
    starts: Any,
    sizes: Any,
    boxes: Callable[[int, int], Any],
    result: Any,
    interleaved: bool = False,
    cut: bool = False,
) -> None:
    """Cut boxes out of images in one array and resize them, on a CPU and torch's number of threads.

    Args:
        pixels: uint8 [N].
        starts: int64 [B], where each image begins.
        sizes: int64 [B, 2], height and width of each.
        boxes: gives those of images `first` to before `last`, float32 [last - first, 4]; called by the thread that
            resizes them, so that drawing them takes no time in which the others have nothing to do.
        result: uint8 [B, C, H, W], overwritten.
        interleaved: whether the images are [height, width, C], else [C, height, width].
        cut: whether the boxes, whole numbers, are cut out before they are resized: no pixel outside has a weight.
    """
    compiled = crop_kernel()
    heights, widths = np.ascontiguousarray(sizes[:, 0]), np.ascontiguousarray(sizes[:, 1])
    drawn = np.empty((len(result), 4), np.float32)

    def work(first: int, last: int) -> None:
        drawn[first:last] = boxes(first, last)
        compiled(pixels, starts, heights, widths, interleaved, drawn, cut, result, first, last)

    images_in_ranges(work, len(result), int(np.prod(result.shape[1:])))


def crop_kernel() -> Callable[..., None]:
    """The compiled crop of `crop_kernels.py`; the first call loads numba, which needs a while."""
    from .crop_kernels import resize_boxes

    return resize_boxes


def _by_torch(images: Tensor | Sequence[Tensor], boxes: Tensor, result: Tensor) -> None:
    """Both passes as matrix products, with Pillow's rounding between them."""
    boxes, size = boxes.to(result.device, torch.float64), result.shape[-1]
    largest = max((image.numel() for image in images), default=1)
    for first in range(0, len(images), max(1, CHUNK // largest)):
        rows = slice(first, first + max(1, CHUNK // largest))
        batch = images[rows] if isinstance(images, Tensor) else _padded(images[rows])
        left, top, right, bottom = boxes[rows].unbind(1)
        heights = torch.tensor([image.shape[-2] for image in images[rows]], device=result.device)
        widths = torch.tensor([image.shape[-1] for image in images[rows]], device=result.device)
        across = _weights(left, right, widths, batch.shape[-1], size)
        down = _weights(top, bottom, heights, batch.shape[-2], size)
        narrow = _rounded(batch.float() @ across.mT)
        result[rows] = _rounded(down @ narrow).to(torch.uint8)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


def _weights(low: Tensor, high: Tensor, own: Tensor, length: int, size: int) -> Tensor:
    """The triangle of each output pixel over all input pixels, float32 [B, 1, size, length]."""
    scale = (high - low)[:, None] / size
    stretch = scale.clamp(min=1)
    outputs, inputs = (torch.arange(n, device=low.device, dtype=torch.float64) + 0.5 for n in (size, length))
    distance = (inputs - (low[:, None] + outputs * scale)[..., None]) / stretch[..., None]
    weights = (1 - distance.abs()).clamp(min=0) * (inputs < own[:, None])[:, None]
    return (weights / weights.sum(-1, keepdim=True)).float()[:, None]


def _padded(images: Sequence[Tensor]) -> Tensor:
    """Images of different sizes as one batch; what is added at the right and below has no weight."""
    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[-2], : image.shape[-1]] = image
    return batch


def _check_images(images: Tensor | Sequence[Tensor]) -> None:
    """Check that these are uint8 images with one number of channels, on one device.

    Raises:
        TypeError, ValueError: as `resize_boxes`.
    """
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8:
            raise TypeError(f"images are {images.dtype}, expected torch.uint8")
        if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected [B, C, H, W] with C = 1 or 3")
        return
    for number, image in enumerate(images):
        if not isinstance(image, Tensor) or image.dtype != torch.uint8:
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"image {number} is {kind}, expected a torch.uint8 tensor")
        if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape[1:]:
            raise ValueError(f"image {number} has shape {tuple(image.shape)}, expected [C, H, W] with C = 1 or 3")
        if image.shape[0] != images[0].shape[0] or image.device != images[0].device:
            raise ValueError(f"image {number} has other channels or another device than image 0")


def _check_numbers(
    images: Sequence[Size], indices: Sequence[int] | Tensor, step: int, sizes: Sequence[Size] | None
) -> None:
    """Check that every image has one index and one size, all whole numbers.

    Raises:
        TypeError, ValueError: as `RandomResizedCrop.forward`.
    """
    numbers = indices.tolist() if isinstance(indices, Tensor) else list(indices)
    for name, found in (("indices", numbers), ("sizes", images if sizes is None else sizes)):
        if len(found) != len(images):
            raise ValueError(f"{len(found)} {name} came with {len(images)} images")
    sides = [side for size in sizes or () for side in size]
    for number in (step, *numbers, *sides):
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise TypeError(f"{number!r} is no whole number, as indices, step and sizes are")
    if min(sides, default=1) < 1:
        raise ValueError(f"sizes have {min(sides)}, expected widths and heights of at least 1")


def _check_boxes(boxes: Tensor, sizes: Tensor) -> None:
    if boxes.shape != (len(sizes), 4):
        raise ValueError(f"boxes have shape {tuple(boxes.shape)}, expected {(len(sizes), 4)}")
    low, high = boxes[:, :2], boxes[:, 2:]
    inside = (low >= 0) & (low < high) & (high <= sizes.flip(1))  # false for NaN
    if not inside.all():
        number = int((~inside.all(1)).nonzero()[0, 0])
        height, width = sizes[number].tolist()
        raise ValueError(f"box {boxes[number].tolist()} is empty or not inside image {number} of {width} x {height}")


def _of_first(images: Sequence[Tensor]) -> tuple[torch.device, int]:
    return (images[0].device, images[0].shape[0]) if images else (torch.device("cpu"), 3)
