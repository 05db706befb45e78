"""Two random operations for every image: ours on the batch, Pillow's doing exactly the same, and others' own policies.

Ours and Pillow's draw the same pairs, levels and directions and their results are compared bit for bit. The others draw
two operations for each image from their own lists at their own strength; their work is similar, not the same.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..policy.sampler import TransformationSampler
from ..runtime.random import generator
from ..transforms.transformation import Transformation
from .interleaved import WARM_UP, Candidate, Clock, Progress, Row, measure, silent
from .pillow import from_pillow, to_pillow, transform_by_pillow
from .report import Report
from .synthetic import synthetic_images

OURS, REFERENCE = "mapolicy", "pillow"
OPERATIONS_PER_IMAGE = 2
STRENGTH = 9  # of RandAugment, as in timm's and torchvision's usual recipes
REPEATS = 3  # batches in a sample of ours and of Pillow's: they are the fastest, and every ratio hangs on Pillow's
PER_IMAGE: dict[str, Any] = {"same_work": False, "input": "one image at a time"}


def measure_operations(
    sizes: Sequence[int], batch_size: int, rounds: int, threads: int, device: torch.device, progress: Progress = silent
) -> Report:
    """Time of two operations for each image of a batch.

    Args:
        sizes: sides of the square images, pixels.
        batch_size: images of a batch.
        rounds: measurements of each candidate at each size.
        threads: of torch (and OpenCV); Pillow has one.
        device: of ours, torchvision's tensors and kornia.
        progress: told of each round.
    """
    clock = Clock.of(device)
    rows: list[Row] = []
    with _threads(threads) as in_force:
        rivals, left_out = _rivals()
        for side in sizes:
            images = synthetic_images(batch_size, side)
            case = _Case(images.to(device))
            candidates = [
                Candidate(OURS, case.ours, REPEATS, {"same_work": True, "input": "uint8 batch", "equal": None}),
                Candidate(
                    REFERENCE, case.by_pillow, REPEATS, {"same_work": True, "input": "PIL images", "equal": None}
                ),
                *(Candidate(name, build(case), facts=PER_IMAGE) for name, build in rivals.items()),
            ]
            measured = measure(candidates, REFERENCE, rounds, clock, progress, f"{side} x {side}")
            progress(f"{side} x {side}: comparing with Pillow, bit for bit")
            equal = all(case.equal(call) for call in range(WARM_UP * REPEATS, (WARM_UP + rounds) * REPEATS))
            rows += [_per_image(row, side, batch_size, equal) for row in measured]
    packages = {name.split("-")[0] for name in rivals} | {"pillow", "numpy"}
    return Report(
        rows=rows,
        time=clock.meaning,
        settings={
            "operations_per_image": OPERATIONS_PER_IMAGE,
            "image_sizes": list(sizes),
            "batch_size": batch_size,
            "rounds": rounds,
        },
        threads=in_force,
        device=device,
        packages=sorted(packages),
        left_out=left_out,
    )


class _Case:
    """One batch in the forms that the candidates take; draws follow from the number of the call."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.pictures = images, to_pillow(images)
        self.fill = images.float().mean((0, 2, 3)).to(torch.uint8)
        self.colour = tuple(self.fill.tolist())
        self._sampler = TransformationSampler()

    def _draw(self, call: int) -> Transformation:
        return self._sampler.sample(len(self.images), generator(0, "bench", "transformation", call))

    def ours(self, call: int) -> Tensor:
        return self._draw(call).to(self.images.device).apply(self.images, fill=self.fill)

    def by_pillow(self, call: int) -> list[Image.Image]:
        return transform_by_pillow(self.pictures, self._draw(call), self.colour)

    def equal(self, call: int) -> bool:
        return torch.equal(self.ours(call).cpu(), from_pillow(self.by_pillow(call)))


def _per_image(row: Row, side: int, batch_size: int, equal: bool) -> Row:
    facts = {**row.facts, "image_size": side, "us_per_image": 1000 * row.median_ms / batch_size}
    facts["images_per_second"] = 1e6 / facts["us_per_image"]
    if "equal" in facts:
        facts["equal"] = equal
    return replace(row, facts=facts)


@contextmanager
def _threads(number: int) -> Iterator[int]:
    """Within it torch has that many threads; the generators that rivals draw from are put back afterwards."""
    before, numpy_state, python_state = torch.get_num_threads(), np.random.get_state(), random.getstate()
    torch.set_num_threads(number)
    try:
        with torch.random.fork_rng(devices=[]):
            yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


Build = Callable[[_Case], Callable[[int], object]]


def _rivals() -> tuple[dict[str, Build], dict[str, str]]:
    """The rivals that are installed; and of the others, why not."""
    rivals: dict[str, Build] = {
        "torchvision-tensor": _torchvision_on_tensors,
        "torchvision-pil": _torchvision_on_pil,
        "timm": _timm,
    }
    left_out = {}
    for name, make in (("albumentations", _albumentations), ("kornia", _kornia)):
        try:
            rivals[name] = make()
        except ImportError as problem:
            missing = isinstance(problem, ModuleNotFoundError) and problem.name == name
            left_out[name] = "not installed" if missing else f"cannot be imported: {problem}"
    return rivals, left_out


def _torchvision_on_tensors(case: _Case) -> Callable[[int], object]:
    from torchvision.transforms import v2

    augment = v2.RandAugment(OPERATIONS_PER_IMAGE, STRENGTH, fill=list(case.colour))
    return lambda call: [augment(image) for image in case.images]


def _torchvision_on_pil(case: _Case) -> Callable[[int], object]:
    from torchvision.transforms import v2

    augment = v2.RandAugment(OPERATIONS_PER_IMAGE, STRENGTH, fill=list(case.colour))
    return lambda call: [augment(picture) for picture in case.pictures]


def _timm(case: _Case) -> Callable[[int], object]:
    from timm.data.auto_augment import rand_augment_transform

    # Without p1 it leaves out every second of the operations that it draws.
    augment = rand_augment_transform(f"rand-m{STRENGTH}-n{OPERATIONS_PER_IMAGE}-p1", {"img_mean": case.colour})
    return lambda call: [augment(picture) for picture in case.pictures]


def _albumentations() -> Build:
    # Without this it asks the package index for a newer version as it is imported.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations
    import cv2

    def build(case: _Case) -> Callable[[int], object]:
        cv2.setNumThreads(torch.get_num_threads())
        arrays = [np.array(picture) for picture in case.pictures]
        a, fill = albumentations, {"fill": case.colour, "interpolation": cv2.INTER_NEAREST, "p": 1.0}
        # One for each of our operations but Identity, over the ranges of the default space.
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

    def build(case: _Case) -> Callable[[int], object]:
        # On a batch it draws the same two operations for all images, so each image goes through on its own.
        augment = RandAugment(n=OPERATIONS_PER_IMAGE, m=STRENGTH)
        images = case.images.float() / 255
        return lambda call: [augment(image[None]) for image in images]

    return build
