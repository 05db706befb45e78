"""The weights that a bundle's policy gives to chosen transformations of chosen images.

Images are transformed without base augmentation and Cutout, so that weights depend on the transformation alone.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..policy.frozen import FrozenExtractor
from ..policy.policy_bundle import PolicyBundle
from ..transforms.basic import Normalisation
from ..transforms.transformation import Transformation

PIXELS_AT_ONCE = 2**21  # of one channel: 2048 images of 32 x 32, 41 of 224 x 224


class SampleWeights:
    """A bundle's operations, extractor and policy network, for images of the bundle's size.

    Args:
        bundle: the searched bundle.
        device: where images are transformed and networks run.

    Attributes:
        bundle, device: the arguments.
        space: the bundle's operation space.
        identity: position of Identity in it.
        policy: the bundle's policy network on the device.
        chunk: images of one forward.
    """

    def __init__(self, bundle: PolicyBundle, device: torch.device) -> None:
        contract, operations = bundle.manifest.input, bundle.manifest.operations
        self.bundle, self.device, self.space = bundle, device, bundle.operation_space
        self.identity = self.space.names.index("Identity")
        self.chunk = max(1, PIXELS_AT_ONCE // contract.size**2)
        mean_colour = Normalisation(contract.mean, contract.std, device).mean_colour()
        self._fill = mean_colour if operations.fill == "mean" else torch.zeros_like(mean_colour)
        self.policy = bundle.build_policy().to(device)

    @cached_property
    def extractor(self) -> FrozenExtractor:
        """Built when it is first used: transforming images needs none."""
        return FrozenExtractor(self.bundle, self.device)

    def augmented(self, images: Tensor, transformation: Transformation) -> Tensor:
        """Apply the transformation, one for each image: uint8 [n, C, H, W] to uint8 [n, C, H, W]."""
        return transformation.apply(images, self.space, self._fill)

    def logits(self, augmented: Tensor, transformation: Transformation) -> Tensor:
        """Outputs of the policy network before its sigmoid, float64 [n]; `relative_weights` makes weights of them.

        Args:
            augmented: uint8 [n, C, H, W], result of `augmented`.
            transformation: the transformation of these images.
        """
        embedding, chunks = transformation.embed(), []
        with torch.no_grad():
            for rows in torch.arange(len(augmented)).split(self.chunk):
                features = self.extractor(augmented[rows])
                chunks.append(self.policy.logits(features, embedding[rows]).double())
        return torch.cat(chunks)

    def operation_logits(self, images: Tensor, operation: int, magnitudes: Tensor) -> Tensor:
        """Logits of each image under one operation followed by Identity, float64 [n].

        Args:
            images: uint8 [n, C, H, W] on the device.
            operation: index of the operation.
            magnitudes: float [n], from -10 to 10.
        """
        count = len(images)
        first, second = (torch.full((count,), index) for index in (operation, self.identity))
        transformation = Transformation(first, second, magnitudes, torch.zeros(count), self.space).to(images.device)
        return self.logits(self.augmented(images, transformation), transformation)


def relative_weights(logits: Tensor, reference: Tensor | None = None) -> Tensor:
    """Weights over the mean weight of a batch of B samples: B P_i of Eq. 4. Finite for all finite logits.

    Args:
        logits: float [n] from `SampleWeights.logits`.
        reference: logits of the batch, [B]. None takes `logits` as the batch, whose weights then have mean 1.

    Returns:
        float64 [n].
    """
    logs = F.logsigmoid(logits.double())
    batch = logs if reference is None else F.logsigmoid(reference.double())
    return (logs - batch.logsumexp(0) + math.log(len(batch))).exp()


def ranks(weights: Tensor) -> list[int]:
    """Rank of each weight [n], 1 for the largest; equal weights rank in their order."""
    order: Sequence[int] = weights.argsort(descending=True, stable=True).argsort().tolist()
    return [position + 1 for position in order]
