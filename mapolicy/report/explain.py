"""The weights of several transformations of one image: MetaAugment's Figure 4 for any image file."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..bundle.manifest import Manifest
from ..data.decode import CorruptImageError, bombs_as_errors, read_file
from ..data.reading import ImageReading
from ..errors import InputError
from ..policy.levels import StagedLevels
from ..policy.policy_bundle import PolicyBundle
from ..runtime.sanitize import printable
from ..transforms.parse import spelled
from ..transforms.transformation import Transformation
from .sample_weights import SampleWeights, ranks, relative_weights

WEIGHT, FREQUENCY = "weight", "frequency"  # what is said of a transformation


@dataclass(frozen=True)
class Explanation:
    """An image under n transformations, weighted as one batch.

    Attributes:
        name: name of the image, printable.
        original: uint8 [C, S, S], at the bundle's size.
        images: uint8 [n, C, S, S], the transformed images.
        transformation: the n transformations.
        weights: float64 [n] with mean 1, n P_i of Eq. 4; of a policy with equal weights, how often each
            transformation is drawn, over how often uniform draws take it.
        ranks: rank of each weight, 1 for the largest.
        measure: what `weights` are: "weight" or "frequency".
    """

    name: str
    original: Tensor
    images: Tensor
    transformation: Transformation
    weights: Tensor
    ranks: list[int]
    measure: str = WEIGHT

    def order(self) -> list[int]:
        """Positions from the largest to the smallest weight."""
        return sorted(range(len(self.ranks)), key=self.ranks.__getitem__)

    def document(self) -> dict[str, Any]:
        """Plain values for JSON, from the largest to the smallest weight."""
        names = self.transformation.space.names
        columns = {
            "first": [names[index] for index in self.transformation.first.tolist()],
            "magnitude1": self.transformation.magnitude1.tolist(),
            "second": [names[index] for index in self.transformation.second.tolist()],
            "magnitude2": self.transformation.magnitude2.tolist(),
            "transformation": spelled(self.transformation),
            self.measure: self.weights.tolist(),
            "rank": self.ranks,
        }
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return {"image": self.name, "transformations": [rows[position] for position in self.order()]}


def read_image(path: str, manifest: Manifest) -> Tensor:
    """Read, crop and resize an image file as the data sets do in evaluation.

    Args:
        path: image file of any size and of any format that Pillow reads.
        manifest: the bundle's: it says how images are read.

    Returns:
        uint8 [C, S, S].

    Raises:
        InputError: the file cannot be read.
    """
    reading = ImageReading.from_dict(manifest.image_reading())
    try:
        with bombs_as_errors():
            return torch.tensor(reading.read(read_file(path), path))
    except CorruptImageError as problem:
        raise InputError(problem.what, problem.why, "name images that Pillow can read") from None


def explain(sample_weights: SampleWeights, image: Tensor, transformation: Transformation, name: str) -> Explanation:
    """Weight several transformations of an image; of a policy with equal weights, say how often they are drawn.

    Args:
        sample_weights: of the bundle.
        image: uint8 [C, S, S], at the bundle's size.
        transformation: the n transformations.
        name: name of the image; characters that do not print are replaced.
    """
    batch = image.to(sample_weights.device).expand(len(transformation), *image.shape)
    on_device = transformation.to(sample_weights.device)
    augmented = sample_weights.augmented(batch, on_device)
    if not sample_weights.bundle.manifest.weighs_images:
        found, measure = relative_frequencies(sample_weights.bundle, transformation), FREQUENCY
    else:
        found, measure = relative_weights(sample_weights.logits(augmented, on_device)).cpu(), WEIGHT
    return Explanation(printable(name), image, augmented.cpu(), transformation, found, ranks(found), measure)


def relative_frequencies(bundle: PolicyBundle, transformation: Transformation) -> Tensor:
    """How often a policy draws each transformation, over how often uniform draws take it; float64 [n]."""
    sampler = bundle.sampler()
    if isinstance(sampler, StagedLevels):
        relative, grid = sampler.relative().flatten(), sampler.grid
        first = relative[grid.cell(transformation.first, transformation.magnitude1)]
        return first * relative[grid.cell(transformation.second, transformation.magnitude2)]
    probabilities = bundle.probabilities.double()
    return probabilities[transformation.first, transformation.second] * probabilities.numel()
