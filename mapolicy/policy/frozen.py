"""A bundle's policy applied to another network's batches: extractor and policy network give each sample a weight."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.choices import LOSS
from ..distributed import ALONE, Communicator
from ..errors import UsageError
from ..models.features import deep_features
from ..models.fuse import agree, fuse_conv_bn
from ..transforms.basic import Normalisation
from ..transforms.transformation import Transformation
from .network import PolicyNetwork, limited, reject_below_mean, weights_of_logits
from .pipeline import AugmentedBatch
from .policy_bundle import PolicyBundle

PROBE_IMAGES = 8
HALF_TOLERANCE = 0.05  # of the largest feature; bfloat16 has 8 significant bits


def extractor_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which extractors compute: half precision on CUDA, where it saves time.

    bfloat16, because it has the range of float32; an activation that overflows float16 would end the run. GPUs that
    only emulate bfloat16 use float32.
    """
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if half else torch.float32


class FrozenExtractor:
    """The proxy of a bundle, in evaluation mode, on images of its own size with its own normalisation.

    It computes channels-last, with BatchNorm fused into convolutions, in `extractor_dtype`. Both changes are checked
    against the original network on fixed images, and dropped if the features differ. The features have no graph and may
    be used in one. If the policy reads no features, no network is built.

    Args:
        bundle: whose extractor it is.
        device: of the computation.
        dtype: of the computation; None takes `extractor_dtype`.
        always: build the network even if the policy network reads no features: the draws do.
    """

    def __init__(
        self, bundle: PolicyBundle, device: torch.device, dtype: torch.dtype | None = None, always: bool = False
    ) -> None:
        contract = bundle.manifest.input
        self._size, self._dtype = contract.size, torch.float32
        self._normalisation = Normalisation(contract.mean, contract.std, device)
        self._network: nn.Module | None = None
        if always or bundle.manifest.policy.input not in ("embedding", LOSS):
            self._build(bundle, device, extractor_dtype(device) if dtype is None else dtype)

    def _build(self, bundle: PolicyBundle, device: torch.device, dtype: torch.dtype) -> None:
        cpu, contract = torch.device("cpu"), bundle.manifest.input
        draws = torch.Generator().manual_seed(0)
        shape = (PROBE_IMAGES, contract.channels, contract.size, contract.size)
        images = torch.randint(0, 256, shape, generator=draws, dtype=torch.uint8)
        probe = Normalisation(contract.mean, contract.std, cpu)(images)
        with torch.autocast(cpu.type, enabled=False):
            network = fuse_conv_bn(bundle.build_extractor(cpu), deep_features, probe)
        self._network = network.to(device)
        if dtype == torch.float32:
            return
        expected = self(images.to(device))
        self._network, self._dtype = copy.deepcopy(network).to(device, dtype), dtype
        try:
            if agree(self(images.to(device)), expected, HALF_TOLERANCE):
                return
        except RuntimeError:  # a network that creates float32 tensors itself fails with half-precision inputs
            pass
        self._network, self._dtype = network, torch.float32

    def __call__(self, images: Tensor) -> Tensor:
        """Deep features, float32 [n, F], of uint8 images [n, C, H, W] of any size; [n, 0] if the policy reads none."""
        if self._network is None:
            return torch.empty(len(images), 0, device=images.device)
        with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
            if images.shape[-2:] != (self._size, self._size):
                images = F.interpolate(images.float(), size=(self._size,) * 2, mode="bilinear", antialias=True)
            features = deep_features(self._network, self._normalisation(images).to(self._dtype))
        # The copy is made outside inference mode, so autograd may save it when the policy keeps learning.
        return features.to(torch.float32, copy=True)


class FrozenWeights:
    """The weights that a bundle's policy gives to an augmented batch; not of a policy that sees the training loss.

    Args:
        extractor: of the bundle.
        policy: of the bundle; not changed.
        rejects: leave out samples with a weight below the batch's mean and weigh the others equally (ablation).
        communicator: to the processes that have the other parts of a batch.
        limit: largest factor between a weight and the batch's mean (`network.limited`); 0 for no limit.

    Raises:
        UsageError: the policy sees the training loss.
    """

    def __init__(
        self,
        extractor: FrozenExtractor,
        policy: PolicyNetwork,
        rejects: bool = False,
        communicator: Communicator = ALONE,
        limit: float = 0.0,
    ) -> None:
        if policy.sees_loss:
            why = "its policy weighs a sample by its training loss, which a frozen policy does not see"
            raise UsageError(f"bundle with policy_input {LOSS}", why, "use --mode finetune, or --policy sampler-only")
        self._extractor, self._policy, self._rejects = extractor, policy, rejects
        self._communicator, self._limit = communicator, limit

    def __call__(self, batch: AugmentedBatch) -> Tensor:
        """P_i of Eq. 4, float [n] with sum 1, of the whole batch; this part of it must carry its transformations."""
        assert batch.transformation is not None
        return self.of(batch.images, batch.transformation)

    def of(self, images: Tensor, transformation: Transformation) -> Tensor:
        """P_i of augmented uint8 images [n, C, H, W] and their transformations, as in `__call__`."""
        with torch.no_grad():
            logits = self._policy.logits(self._extractor(images), transformation.embed())
            weights = weights_of_logits(self._communicator.gather(logits))
            weights = limited(weights, self._limit) if self._limit else weights
            return reject_below_mean(weights) if self._rejects else weights
