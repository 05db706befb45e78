"""A bundle's policy at work on another network's batches: its extractor sees them, its policy network weighs them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bundle import PolicyBundle
from .features import deep_features
from .pipeline import AugmentedBatch
from .policy import PolicyNetwork, normalise_weights


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
        self._mean = torch.tensor(contract.mean, device=device)[:, None, None] * 255
        self._scale = 1 / (torch.tensor(contract.std, device=device)[:, None, None] * 255)

    def __call__(self, images: Tensor) -> Tensor:
        """Deep features, float32 [n, F], of uint8 images [n, C, H, W] of any size."""
        with torch.no_grad():
            pixels = images.float()
            if pixels.shape[-1] != self._size:
                pixels = F.interpolate(pixels, size=(self._size,) * 2, mode="bilinear", antialias=True)
            return deep_features(self._network, (pixels - self._mean) * self._scale)


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
        with torch.no_grad():
            features = self._extractor(batch.images)
            return normalise_weights(self._policy(features, batch.transformation.embed()))
