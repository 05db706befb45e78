"""Which transformations a policy likes for one image: Figure 4 of MetaAugment for anybody's pictures."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..bundle.manifest import InputContract
from ..data.decode import EVALUATION_SHARE, CorruptImageError, ResizedCrop, bombs_as_errors, decode, read_file
from ..errors import InputError
from ..runtime.sanitize import printable
from ..transforms.parse import spelled
from ..transforms.space import OPERATION_NAMES
from ..transforms.transformation import Transformation
from .sample_weights import SampleWeights, ranks, relative_weights


@dataclass(frozen=True)
class Explanation:
    """An image under n transformations, which are one batch: a weight of 1 is the batch's mean, 1/n of its sum.

    Attributes:
        name: of the image.
        original: uint8 [C, S, S], at the bundle's size.
        images: uint8 [n, C, S, S], transformed.
        transformation: of n images.
        weights: float64 [n], n P_i of Eq. 4.
        ranks: 1 for the heaviest.
    """

    name: str
    original: Tensor
    images: Tensor
    transformation: Transformation
    weights: Tensor
    ranks: list[int]

    def order(self) -> list[int]:
        """Positions from the heaviest to the lightest."""
        return sorted(range(len(self.ranks)), key=self.ranks.__getitem__)

    def document(self) -> dict[str, Any]:
        """Plain values for JSON, from the heaviest to the lightest."""
        columns = {
            "first": [OPERATION_NAMES[index] for index in self.transformation.first.tolist()],
            "magnitude1": self.transformation.magnitude1.tolist(),
            "second": [OPERATION_NAMES[index] for index in self.transformation.second.tolist()],
            "magnitude2": self.transformation.magnitude2.tolist(),
            "transformation": spelled(self.transformation),
            "weight": self.weights.tolist(),
            "rank": self.ranks,
        }
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return {"image": self.name, "transformations": [rows[position] for position in self.order()]}


def read_image(path: str, contract: InputContract) -> Tensor:
    """An image file as the data sets bring theirs to a network: uint8 [C, S, S].

    Args:
        path: of any size, and of any kind that Pillow reads.
        contract: of the bundle: channels, size, and whether the network was trained on random resized crops.

    Raises:
        InputError: it cannot be read.
    """
    share = EVALUATION_SHARE if contract.base_augmentation == "random_resized_crop" else 1.0
    framing = ResizedCrop(contract.channels, contract.size, share, random_crop=False, seed=0, stage="explain")
    try:
        with bombs_as_errors():
            return torch.tensor(framing.central(decode(read_file(path), path)))
    except CorruptImageError as problem:
        raise InputError(problem.what, problem.why, "name images that Pillow can read") from None


def explain(sample_weights: SampleWeights, image: Tensor, transformation: Transformation, name: str) -> Explanation:
    """What the policy gives to each of these transformations of an image.

    Args:
        sample_weights: of the bundle.
        image: uint8 [C, S, S], at the bundle's size.
        transformation: n of them.
        name: of the image; characters that do not print are replaced.
    """
    batch = image.to(sample_weights.device).expand(len(transformation), *image.shape)
    there = transformation.to(sample_weights.device)
    augmented = sample_weights.augmented(batch, there)
    weights = relative_weights(sample_weights.logits(augmented, there)).cpu()
    return Explanation(printable(name), image, augmented.cpu(), transformation, weights, ranks(weights))
