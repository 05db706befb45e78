"""What a bundle's policy thinks of chosen transformations of chosen images.

The images meet the transformation alone, without base augmentation and Cutout, which would hide what is asked about.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..policy.frozen import FrozenExtractor
from ..policy.policy_bundle import PolicyBundle
from ..transforms.basic import Normalisation
from ..transforms.transformation import Transformation

PIXELS_AT_ONCE = 2**21  # of one channel: 2048 images of 32 x 32, 41 of 224 x 224


class SampleWeights:
    """A bundle's policy, extractor and operations, for images of the bundle's own size.

    Args:
        bundle: the policy.
        device: where it shall run.
    """

    def __init__(self, bundle: PolicyBundle, device: torch.device) -> None:
        contract, operations = bundle.manifest.input, bundle.manifest.operations
        self.bundle, self.device, self.space = bundle, device, operations.space
        self.chunk = max(1, PIXELS_AT_ONCE // contract.size**2)
        mean_colour = Normalisation(contract.mean, contract.std, device).mean_colour()
        self._fill = mean_colour if operations.fill == "mean" else torch.zeros_like(mean_colour)
        self._extractor, self._policy = FrozenExtractor(bundle, device), bundle.build_policy().to(device)

    def augmented(self, images: Tensor, transformation: Transformation) -> Tensor:
        """The transformed images, uint8 [n, C, H, W] as the given ones."""
        return transformation.apply(images, self.space, self._fill)

    def logits(self, augmented: Tensor, transformation: Transformation) -> Tensor:
        """What the policy's sigmoid is taken of, float64 [n]: for `relative_weights`.

        Args:
            augmented: uint8 [n, C, H, W], what `augmented` has returned.
            transformation: of these images.
        """
        embedding, found = transformation.embed(), []
        with torch.no_grad():
            for rows in torch.arange(len(augmented)).split(self.chunk):
                features = self._extractor(augmented[rows])
                found.append(self._policy.logits(features, embedding[rows]).double())
        return torch.cat(found)


def relative_weights(logits: Tensor, reference: Tensor | None = None) -> Tensor:
    """Weights over the mean weight of a batch: B P_i of Eq. 4, float64 [n], finite for all finite logits.

    Args:
        logits: float [n] of `SampleWeights.logits`.
        reference: the batch's logits, [B]; None takes `logits` themselves, whose results have mean 1.
    """
    logs = F.logsigmoid(logits.double())
    batch = logs if reference is None else F.logsigmoid(reference.double())
    return (logs - batch.logsumexp(0) + math.log(len(batch))).exp()


def ranks(weights: Tensor) -> list[int]:
    """The rank of each weight [n], 1 for the largest; equal ones keep their order."""
    order: Sequence[int] = weights.argsort(descending=True, stable=True).argsort().tolist()
    return [position + 1 for position in order]
