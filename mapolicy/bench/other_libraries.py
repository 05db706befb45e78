"""The augmentation policies of other libraries, which `mapolicy bench operations` compares with.

Each draws two operations for every image, from its own operations and at its own strength. The work is similar to
ours, not the same.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OPERATIONS_PER_IMAGE = 2
STRENGTH = 9  # of RandAugment, as in the usual recipes of timm and torchvision


@dataclass(frozen=True)
class ImageBatch:
    """One batch in the forms that libraries take.

    Attributes:
        images: uint8 [B, 3, H, W].
        pictures: the same images for Pillow.
        colour: RGB of the pixels that geometric operations uncover.
    """

    images: Tensor
    pictures: list[Image.Image]
    colour: tuple[int, ...]


# Prepares a library for a batch. The result augments the batch; its argument is the number of the call.
Build = Callable[[ImageBatch], Callable[[int], object]]


def other_libraries() -> tuple[dict[str, Build], dict[str, str]]:
    """The libraries that can be imported, and the reasons why the others cannot."""
    found: dict[str, Build] = {
        "torchvision-tensor": _torchvision_on_tensors,
        "torchvision-pil": _torchvision_on_pil,
        "timm": _timm,
    }
    left_out = {}
    for name, make in (("albumentations", _albumentations), ("kornia", _kornia)):
        try:
            found[name] = make()
        except ImportError as problem:
            missing = isinstance(problem, ModuleNotFoundError) and problem.name == name
            left_out[name] = "not installed" if missing else f"cannot be imported: {problem}"
    return found, left_out


def _torchvision_on_tensors(batch: ImageBatch) -> Callable[[int], object]:
    from torchvision.transforms import v2

    augment = v2.RandAugment(OPERATIONS_PER_IMAGE, STRENGTH, fill=list(batch.colour))
    return lambda call: [augment(image) for image in batch.images]


def _torchvision_on_pil(batch: ImageBatch) -> Callable[[int], object]:
    from torchvision.transforms import v2

    augment = v2.RandAugment(OPERATIONS_PER_IMAGE, STRENGTH, fill=list(batch.colour))
    return lambda call: [augment(picture) for picture in batch.pictures]


def _timm(batch: ImageBatch) -> Callable[[int], object]:
    from timm.data.auto_augment import rand_augment_transform

    # p1 applies every drawn operation; the default applies half of them.
    augment = rand_augment_transform(f"rand-m{STRENGTH}-n{OPERATIONS_PER_IMAGE}-p1", {"img_mean": batch.colour})
    return lambda call: [augment(picture) for picture in batch.pictures]


def _albumentations() -> Build:
    # Without this the import asks the package index for a newer version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations
    import cv2

    def build(batch: ImageBatch) -> Callable[[int], object]:
        cv2.setNumThreads(torch.get_num_threads())
        arrays = [np.array(picture) for picture in batch.pictures]
        a, fill = albumentations, {"fill": batch.colour, "interpolation": cv2.INTER_NEAREST, "p": 1.0}
        # One for each of our operations except Identity, with the ranges of the default space.
        operations = [
            a.AutoContrast(p=1.0),
            a.Equalize(p=1.0),
            a.Affine(rotate=(-30, 30), **fill),
            a.Posterize(num_bits=(4, 8), p=1.0),
            a.Solarize(threshold_range=(0.0, 1.0), p=1.0),
            *(
                a.ColorJitter(**{"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)} | one)
                for one in ({"saturation": (0.1, 1.9)}, {"contrast": (0.1, 1.9)}, {"brightness": (0.1, 1.9)})
            ),
            a.Sharpen(p=1.0),
            a.Affine(shear={"x": (-17, 17), "y": (0, 0)}, **fill),
            a.Affine(shear={"x": (0, 0), "y": (-17, 17)}, **fill),
            a.Affine(translate_percent={"x": (-0.3, 0.3), "y": (0, 0)}, **fill),
            a.Affine(translate_percent={"x": (0, 0), "y": (-0.3, 0.3)}, **fill),
        ]
        augment = a.SomeOf(operations, n=OPERATIONS_PER_IMAGE, replace=True, p=1.0)
        return lambda call: [augment(image=array)["image"] for array in arrays]

    return build


def _kornia() -> Build:
    from kornia.augmentation.auto import RandAugment

    def build(batch: ImageBatch) -> Callable[[int], object]:
        # For a batch it draws the same two operations for all images, so images are augmented one by one.
        augment = RandAugment(n=OPERATIONS_PER_IMAGE, m=STRENGTH)
        images = batch.images.float() / 255
        return lambda call: [augment(image[None]) for image in images]

    return build
