"""The numbers and images behind `mapolicy explore`: weight and rank of any image under any transformation."""

import threading
from typing import Any

import torch

from ..data.splits import Split
from ..errors import UsageError
from ..runtime.random import generator
from ..runtime.sanitize import printable
from ..transforms.parse import parse_transformations, spelled
from ..transforms.transformation import Transformation
from .sample_weights import SampleWeights, relative_weights
from .samples import load_images
from .templating import environment, inlined, png_address

IMAGES, AT_ONCE = 240, 24  # to choose from, and on one screen
REFERENCE = 128  # samples of the batch that weights are relative to, as in a training batch
LARGEST_PICTURE = 512  # pixels of a side


class Explorer:
    """Images of a bundle's data set and their weights under chosen transformations. Thread-safe.

    Weights are relative to a batch as in training: `REFERENCE` images under transformations drawn from p_jk once.

    Args:
        sample_weights: of the bundle.
        split: split that `IMAGES` images are chosen from.
        seed: seed of that choice and of the batch.

    Attributes:
        sample_weights: the argument.
        classes: names of the classes.
        images: uint8 [n, C, S, S], the images to choose from.
        reference: logits of the batch, float64 [REFERENCE].
    """

    def __init__(self, sample_weights: SampleWeights, split: Split, seed: int = 0) -> None:
        self.sample_weights, self._lock, self._seed, self._draws = sample_weights, threading.Lock(), seed, 0
        self.classes = sample_weights.bundle.manifest.dataset.classes
        self._sampler = sample_weights.bundle.sampler()
        count = max(IMAGES, REFERENCE)
        positions = torch.randperm(len(split), generator=generator(seed, "explore", "images", 0))[:count]
        self.images, self._labels = load_images(split, positions)
        images = self.images[:REFERENCE]
        drawn = self._sampler.sample(len(images), generator(seed, "explore", "reference", 0)).to(sample_weights.device)
        self.reference = sample_weights.logits(sample_weights.augmented(images, drawn), drawn)
        self.images, self._labels = self.images[:IMAGES], self._labels[:IMAGES].cpu()

    def __len__(self) -> int:
        return len(self.images)

    def choice(self, start: int) -> list[dict[str, Any]]:
        """Up to `AT_ONCE` images from position `start` on: position, class and PNG of each."""
        return [
            {
                "image": at,
                "class": printable(self.classes[int(self._labels[at])]),
                "picture": png_address(self.images[at].cpu()),
            }
            for at in range(max(start, 0), min(max(start, 0) + AT_ONCE, len(self)))
        ]

    def draw(self) -> dict[str, Any]:
        """Draw a transformation from p_jk: names and magnitudes of both operations."""
        with self._lock:
            self._draws += 1
            drawn = self._sampler.sample(1, generator(self._seed, "explore", "draw", self._draws))
        return {
            "first": drawn.space.names[int(drawn.first)],
            "second": drawn.space.names[int(drawn.second)],
            "magnitude1": round(float(drawn.magnitude1), 1),
            "magnitude2": round(float(drawn.magnitude2), 1),
        }

    def weigh(self, image: int, text: str) -> dict[str, Any]:
        """Weight an image under a transformation.

        Args:
            image: position of the image.
            text: the transformation, as `parse_transformations` reads it.

        Returns:
            `transformation` and `class` as text; `weight`; `rank` among the `of` samples of the batch and this one;
            `as_it_is`, the weight of the image under Identity; `probability`, the transformation's p_jk; the PNGs
            `before` and `after`.

        Raises:
            UsageError: there is no such image, or `text` is not exactly one transformation.
        """
        chosen = parse_transformations(text, self.sample_weights.space)
        if len(chosen) != 1:
            raise UsageError("transformations", f"there are {len(chosen)}, expected 1")
        if not 0 <= image < len(self):
            raise UsageError("image", f"{image} is not one of 0 to {len(self) - 1}")
        both = _with_identity(chosen).to(self.sample_weights.device)
        with self._lock:
            augmented = self.sample_weights.augmented(self.images[image].expand(2, -1, -1, -1), both)
            logits = self.sample_weights.logits(augmented, both)
        weight, as_it_is = relative_weights(logits, self.reference).tolist()
        before, after = self.images[image].cpu(), augmented[0].cpu()
        return {
            "transformation": spelled(chosen)[0],
            "class": printable(self.classes[int(self._labels[image])]),
            "weight": weight,
            "rank": 1 + int((self.reference > logits[0]).sum()),
            "of": len(self.reference) + 1,
            "as_it_is": as_it_is,
            "probability": float(self._sampler.probabilities[chosen.first, chosen.second]),
            "before": png_address(before, LARGEST_PICTURE),
            "after": png_address(after, LARGEST_PICTURE),
        }

    def page(self) -> str:
        """The HTML of the page; its script requests images and weights."""
        manifest = self.sample_weights.bundle.manifest
        space = self.sample_weights.space
        operations = list(zip(space.names, space.has_magnitude, strict=True))
        return (
            environment()
            .get_template("explore.html")
            .render(
                style=inlined("style.css"),
                script=inlined("explore.js"),
                dataset=manifest.dataset.name,
                digest=manifest.digest,
                operations=operations,
                reference=len(self.reference),
                images=len(self),
                at_once=AT_ONCE,
            )
        )


def _with_identity(chosen: Transformation) -> Transformation:
    return chosen.followed_by(parse_transformations("Identity", chosen.space))
