"""Time of two random operations for each image: ours on the batch, Pillow's, and the policies of other libraries.

Ours and Pillow's draw the same operations, levels and directions, and their results are compared bit for bit.
"""

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
from .other_libraries import OPERATIONS_PER_IMAGE, ImageBatch, other_libraries
from .pillow import from_pillow, to_pillow, transform_by_pillow
from .report import Report
from .synthetic import synthetic_images

OURS, ALONE, REFERENCE = "mapolicy", "mapolicy-one-thread", "pillow"
REPEATS = 3  # batches in a sample of ours and of Pillow's, which are the fastest; every ratio depends on Pillow's time
OURS_FACTS: dict[str, Any] = {"same_work": True, "input": "uint8 batch", "equal": None}
PER_IMAGE: dict[str, Any] = {"same_work": False, "input": "one image at a time"}


def measure_operations(
    sizes: Sequence[int], batch_size: int, rounds: int, threads: int, device: torch.device, progress: Progress = silent
) -> Report:
    """Time two operations for each image of a batch.

    Args:
        sizes: sides of the square images, pixels.
        batch_size: images of a batch.
        rounds: timings of each candidate at each size.
        threads: threads of torch and OpenCV; Pillow uses one. With several, ours is also measured on one, and
            wall-clock time is measured.
        device: device of our operations, torchvision's tensors and kornia.
        progress: called at the start of each round.
    """
    clock = Clock.for_threads(device, threads)
    rows: list[Row] = []
    with threads_set(threads) as in_force:
        libraries, left_out = other_libraries()
        for side in sizes:
            images = synthetic_images(batch_size, side)
            case = _Case(images.to(device))
            candidates = [
                Candidate(OURS, case.ours, REPEATS, OURS_FACTS),
                *([Candidate(ALONE, on_one_thread(case.ours), REPEATS, OURS_FACTS)] if in_force > 1 else []),
                Candidate(
                    REFERENCE, case.by_pillow, REPEATS, {"same_work": True, "input": "PIL images", "equal": None}
                ),
                *(Candidate(name, build(case.batch), facts=PER_IMAGE) for name, build in libraries.items()),
            ]
            measured = measure(candidates, REFERENCE, rounds, clock, progress, f"{side} x {side}")
            progress(f"{side} x {side}: comparing with Pillow, bit for bit")
            equal = all(case.equal(call) for call in range(WARM_UP * REPEATS, (WARM_UP + rounds) * REPEATS))
            rows += [_per_image(row, side, batch_size, equal) for row in measured]
    packages = {name.split("-")[0] for name in libraries} | {"pillow", "numpy"}
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
    """Our operations and Pillow's on one batch, with the same transformations in the same call."""

    def __init__(self, images: Tensor) -> None:
        self.fill = images.float().mean((0, 2, 3)).to(torch.uint8)
        self.batch = ImageBatch(images, to_pillow(images), tuple(self.fill.tolist()))
        self._sampler = TransformationSampler()

    def _draw(self, call: int) -> Transformation:
        return self._sampler.sample(len(self.batch.images), generator(0, "bench", "transformation", call))

    def ours(self, call: int) -> Tensor:
        return self._draw(call).to(self.batch.images.device).apply(self.batch.images, fill=self.fill)

    def by_pillow(self, call: int) -> list[Image.Image]:
        return transform_by_pillow(self.batch.pictures, self._draw(call), self.batch.colour)

    def equal(self, call: int) -> bool:
        ours = self.ours(call).cpu()
        alone = on_one_thread(self.ours)(call).cpu()
        return torch.equal(ours, from_pillow(self.by_pillow(call))) and torch.equal(ours, alone)


def _per_image(row: Row, side: int, batch_size: int, equal: bool) -> Row:
    facts = {**row.facts, "image_size": side, "us_per_image": 1000 * row.median_ms / batch_size}
    facts["images_per_second"] = 1e6 / facts["us_per_image"]
    if "equal" in facts:
        facts["equal"] = equal
    return replace(row, facts=facts)


def on_one_thread(work: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """The same work with one of torch's threads."""

    def alone(call: int) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return work(call)
        finally:
            torch.set_num_threads(before)

    return alone


@contextmanager
def threads_set(number: int) -> Iterator[int]:
    """Set torch's threads; restore them, and the random states that other libraries use, afterwards."""
    before, numpy_state, python_state = torch.get_num_threads(), np.random.get_state(), random.getstate()
    torch.set_num_threads(number)
    try:
        with torch.random.fork_rng(devices=[]):
            yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
