"""A bundle's policy at work on another network's batches: its extractor sees them, its policy network weighs them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bundle import PolicyBundle
from .features import deep_features
from .pipeline import AugmentedBatch, Normalisation
from .policy import PolicyNetwork, normalise_weights
from .transformation import Transformation


class FrozenExtractor:
    """The proxy of a bundle, in evaluation mode, on images of its own size with its own normalisation.

    Args:
        bundle: whose extractor it is.
        device: where it shall run.
    """

    def __init__(self, bundle: PolicyBundle, device: torch.device) -> None:
        contract = bundle.manifest.input
        self._network: nn.Module = bundle.build_extractor(device)
        self._size = contract.size
        self._normalisation = Normalisation(contract.mean, contract.std, device)

    def __call__(self, images: Tensor) -> Tensor:
        """Deep features, float32 [n, F], of uint8 images [n, C, H, W] of any size."""
        with torch.no_grad():
            pixels = images.float()
            if pixels.shape[-2:] != (self._size, self._size):
                pixels = F.interpolate(pixels, size=(self._size,) * 2, mode="bilinear", antialias=True)
            return deep_features(self._network, self._normalisation(pixels))


class FrozenWeights:
    """The weights that a bundle's policy gives to an augmented batch.

    Args:
        extractor: of the bundle.
        policy: of the bundle; not changed.
    """

    def __init__(self, extractor: FrozenExtractor, policy: PolicyNetwork) -> None:
        self._extractor, self._policy = extractor, policy

    def __call__(self, batch: AugmentedBatch) -> Tensor:
        """P_i of Eq. 4, float [n] with sum 1; the batch must carry its transformations."""
        assert batch.transformation is not None
        return self.of(batch.images, batch.transformation)

    def of(self, images: Tensor, transformation: Transformation) -> Tensor:
        """The same for augmented uint8 images [n, C, H, W] and what they were augmented by."""
        with torch.no_grad():
            return normalise_weights(self._policy(self._extractor(images), transformation.embed()))
