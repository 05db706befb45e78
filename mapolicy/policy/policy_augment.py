"""The policy in your own training loop, in place of MixUp.

    policy = PolicyAugment(PolicyBundle.load("digits.safetensors"))
    for images, labels in loader:                   # uint8 [B, C, H, W], int64 [B]
        inputs, targets = policy(images, labels)    # float32 [B, C, H, W], float32 [B, classes]
        loss = F.cross_entropy(network(inputs), targets)

With targets B * P_i * onehot(y_i), the mean cross entropy over the batch is sum_i P_i CE_i, in loss and gradient: the
weighted step of MetaAugment (Zhou et al., AAAI 2021), Eq. 4, in a trainer without support for weights.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from ..transforms.basic import Normalisation
from ..transforms.transformation import Transformation
from .augmentations import SampledTransformations
from .frozen import FrozenExtractor, FrozenWeights
from .levels import SampleEffects, class_context
from .pipeline import Pipeline, PipelineSettings
from .policy_bundle import PolicyBundle

MODES = ("frozen", "sampler")


def weighted_targets(labels: Tensor, weights: Tensor, classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Soft targets that make a mean cross entropy a weighted one.

    mean_i CE(logits_i, targets_i) = sum_i weights_i * CE(logits_i, y_i, label_smoothing), with the label smoothing of
    `torch.nn.functional.cross_entropy`: (1 - s) onehot(y_i) + s / classes. A row sums to B * weights_i.

    Args:
        labels: int64 [B], in [0, classes).
        weights: float [B], P_i with sum 1.
        classes: number of logits.
        label_smoothing: s, in [0, 1).

    Returns:
        [B, classes] in the dtype of `weights`.
    """
    onehot = F.one_hot(labels, classes).to(weights.dtype)
    smoothed = (1 - label_smoothing) * onehot + label_smoothing / classes
    return (len(labels) * weights)[:, None] * smoothed


class PolicyAugment:
    """A bundle's policy as a step of a training loop: augments, normalises and weighs a batch of uint8 images.

    Requirements on the loop:

    - Its loss is the mean cross entropy over soft targets (`torch.nn.CrossEntropyLoss`,
      `timm.loss.SoftTargetCrossEntropy`), without label smoothing of its own, which would not be weighted. Other losses
      (binary cross entropy, distillation) take `sample` and `weights`.
    - Base augmentation (flip, crop) comes before and leaves uint8; transformation, Cutout and normalisation are done
      here. Leave out MixUp and a second normalisation.
    - Call it in the training loop, not in a DataLoader worker. For evaluation call only `normalise`.

    P_i has sum 1, up to float32's rounding, over the batch of the call: over each rank's batch, and over each
    micro-batch of an accumulated gradient.

    It is not a `torch.nn.Module`, so its frozen networks do not get into an optimiser, a checkpoint or train mode. It
    computes in float32, also under autocast, and draws from its own generators, never from the global one.

    Args:
        bundle: the policy.
        mode: "frozen" draws the bundle's transformations and weighs with the frozen extractor and policy network, or
            equally where the search did; "sampler" draws them and weighs all samples equally, without any network.
        label_smoothing: of the targets, in [0, 1); each sample's smoothing has the sample's weight. The loss becomes
            sum_i P_i CE_i with torch's `label_smoothing`.
        seed: with `rank` and `step` it fixes every draw.
        rank: of this process; ranks draw differently.
        device: of the images, and of the networks; None takes that of the first images.
        mean, std: one number per channel, for pixels in [0, 1], of the normalisation that the trained network expects;
            None takes the bundle's. The extractor keeps its own.
        cutout: side of the hidden square, pixels; None takes the bundle's, 0 hides nothing.
        base_augmentation: also flip and crop as the bundle's search did.

    Attributes:
        classes: names of the bundle's classes; labels are positions in it.
        step: number of calls. Set it, or load a `state_dict`, to resume with the same draws.

    Raises:
        ValueError: an argument cannot be used.
        TypeError: `bundle` is not a `PolicyBundle`.
    """

    def __init__(
        self,
        bundle: PolicyBundle,
        mode: str = "frozen",
        *,
        label_smoothing: float = 0.0,
        seed: int = 0,
        rank: int = 0,
        device: torch.device | str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        cutout: int | None = None,
        base_augmentation: bool = False,
    ) -> None:
        # More than 60 lines: every argument is checked here, before an image is seen.
        given: object = bundle
        if not isinstance(given, PolicyBundle):
            remedy = "; give PolicyBundle.load(path)" if isinstance(given, str | os.PathLike) else ""
            raise TypeError(f"bundle is a {type(given).__name__}, expected a PolicyBundle{remedy}")
        contract, operations = bundle.manifest.input, bundle.manifest.operations
        if mode == "finetune":
            raise ValueError(
                "mode 'finetune' needs the hypergradient of the network that is trained, which no foreign loop has; "
                "use `mapolicy train --mode finetune`, or mode 'frozen' here"
            )
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}, expected a number in [0, 1)")
        if cutout is not None and cutout < 0:
            raise ValueError(f"cutout is {cutout}, expected pixels, or 0 for none")
        if base_augmentation and contract.base_augmentation == "random_resized_crop":
            raise ValueError(
                "base_augmentation: the bundle's is random_resized_crop, which belongs where images are decoded; "
                "crop and flip in the data set, and leave base_augmentation out"
            )
        if (mean is None) != (std is None):
            raise ValueError("one of mean and std is missing; give both or neither")
        self._mean, self._std = (
            tuple(map(float, own if given is None else given))
            for own, given in ((contract.mean, mean), (contract.std, std))
        )
        numbers = (*self._mean, *self._std)
        if not (
            len(self._mean) == len(self._std) == contract.channels
            and all(map(math.isfinite, numbers))
            and min(self._std) > 0
        ):
            raise ValueError(
                f"mean is {self._mean}, std {self._std}; both need a finite number for each of {contract.channels} "
                "channels, std above 0"
            )
        self.classes = tuple(bundle.manifest.dataset.classes)
        self.step = 0
        self._bundle, self._mode, self._label_smoothing, self._seed = bundle, mode, label_smoothing, seed
        self._settings = PipelineSettings(
            base_augmentation=contract.base_augmentation if base_augmentation else "none",
            cutout=contract.cutout if cutout is None else cutout,
            fill=operations.fill,
            copies=1,
            seed=seed,
            stage=f"adapter-{rank}",
        )
        sampler = bundle.sampler()
        self._effects = bundle.sample_effects
        self._augmentation = SampledTransformations(sampler, operations.space)
        self._device: torch.device | None = None
        if device is not None:
            # Where "cuda" is, images say "cuda:0".
            self._settle(torch.empty(0, device=device).device)

    def _settle(self, device: torch.device) -> None:
        """Build everything that is on a device."""
        contract = self._bundle.manifest.input
        # The policy's colours are the data set's, whatever normalisation the trained network expects.
        self._pipeline = Pipeline(self._settings, contract.mean, contract.std, device)
        self._normalisation = Normalisation(self._mean, self._std, device)
        self._frozen: FrozenWeights | None = None
        reads = self._effects is not None and self._effects.features is not None
        self._seen = FrozenExtractor(self._bundle, device, always=True) if reads else None
        if self._mode == "frozen" and not self._bundle.manifest.equal_weights:
            self._frozen = FrozenWeights(FrozenExtractor(self._bundle, device), self._bundle.build_policy().to(device))
        self._device = device

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch to train on; counts as one step.

        Args:
            images: uint8 [B, C, H, W], left as they are.
            labels: int64 [B], positions in `classes`, where the images are.

        Returns:
            float32 [B, C, H, W], augmented and normalised; float32 [B, classes], targets that sum to B up to rounding:
            a row sums to B * P_i, not to 1.

        Raises:
            ValueError: images or labels of another kind; the message says how to fix it.
            RuntimeError: called in a DataLoader worker.
        """
        self._check(images)
        self._check_labels(labels, images)
        augmented, transformation = self.sample(images, labels)
        weights = self.weights(augmented, transformation)
        targets = weighted_targets(labels, weights, len(self.classes), self._label_smoothing)
        return self.normalise(augmented), targets

    def sample(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Transformation]:
        """Augmented uint8 images [B, C, H, W] and what was done to them; counts as one step.

        Args:
            images: uint8 [B, C, H, W], left as they are.
            labels: int64 [B]; only a policy whose draws depend on the class needs them.

        Raises:
            ValueError, RuntimeError: as `__call__`.
        """
        self._check(images)
        if get_worker_info() is not None:
            raise RuntimeError(
                "PolicyAugment was called in a DataLoader worker, where each worker would make the same draws; "
                "call it in the training loop, on the batch that the loader yields"
            )
        augmentation = self._augmentation
        if self._effects is not None:
            augmentation = augmentation.seeing(self._context(self._effects, images, labels))
        augmented, transformation = self._pipeline.transform(images, augmentation, self.step)
        assert transformation is not None
        self.step += 1
        return augmented, transformation

    def _context(self, effects: SampleEffects, images: Tensor, labels: Tensor | None) -> Tensor:
        """h(x) of the images before augmentation, float32 [B, D]."""
        if effects.features is None:
            if labels is None:
                raise ValueError("this policy's draws depend on the class; give the labels too")
            self._check_labels(labels, images)
            return class_context(labels, len(effects.table))
        assert self._seen is not None
        return effects.features.context(self._seen(images))

    def weights(self, images: Tensor, transformation: Transformation) -> Tensor:
        """P_i of Eq. 4, float32 [B] with sum 1; 1 / B each in mode "sampler".

        Args:
            images: uint8 [B, C, H, W], augmented: what `sample` has returned.
            transformation: of these images.

        Raises:
            ValueError: images of another kind, or another number of transformations.
        """
        self._check(images)
        if len(transformation) != len(images):
            raise ValueError(f"{len(images)} images came with {len(transformation)} transformations")
        if self._frozen is None:
            return torch.full((len(images),), 1 / len(images), device=images.device)
        # In half precision the policy network would give other weights than in the search.
        with torch.autocast(images.device.type, enabled=False):
            return self._frozen.of(images, transformation.to(images.device))

    def normalise(self, images: Tensor) -> Tensor:
        """Float32 [B, C, H, W], as the trained network expects them, of uint8 images; also for evaluation.

        Raises:
            ValueError: images of another kind.
        """
        self._check(images)
        return self._normalisation(images)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the step, with seed and digest. It is the same on every rank."""
        return {"step": self.step, "seed": self._seed, "digest": self._bundle.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the step of `state`.

        Raises:
            ValueError: it is not such a state, or has another seed or bundle, so the draws would differ.
        """
        own = self.state_dict()
        if missing := sorted(own.keys() - state.keys()):
            raise ValueError(f"the state has no {' and no '.join(missing)}; give what `state_dict` has returned")
        for name, value in own.items():
            if name != "step" and state[name] != value:
                raise ValueError(f"the state's {name} is {state[name]!r}, this policy's {value!r}; build it as it was")
        step = state["step"]
        if type(step) is not int or step < 0:
            raise ValueError(f"the state's step is {step!r}, expected a whole number of 0 or more")
        self.step = step

    def _check(self, images: Tensor) -> None:
        """Images are what the policy was searched on; the first ones decide the device."""
        channels = self._bundle.manifest.input.channels
        _check_tensor("images", images, f"uint8 [B, {channels}, H, W]")
        if images.dtype != torch.uint8:
            raise ValueError(
                f"images are {images.dtype}, expected torch.uint8; end the loader's transform with PILToTensor, "
                "without ToTensor, ToDtype and Normalize: the policy works on pixels and normalises afterwards"
            )
        if images.ndim != 4 or 0 in images.shape:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected a batch [B, {channels}, H, W]")
        if images.shape[1] != channels:
            raise ValueError(
                f"images have {images.shape[1]} channels, the policy was searched on {channels}; convert them before"
            )
        if self._device is None:
            self._settle(images.device)
        if images.device != self._device:
            raise ValueError(f"images are on {images.device}, the policy is on {self._device}; move them there first")

    def _check_labels(self, labels: Tensor, images: Tensor) -> None:
        _check_tensor("labels", labels, "int64 [B]")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels are {labels.dtype} {tuple(labels.shape)}, expected torch.int64 ({len(images)},): class "
                "positions; soft labels (MixUp, CutMix) and the policy's weights do not go together"
            )
        if labels.device != images.device:
            raise ValueError(f"labels are on {labels.device}, images on {images.device}; move them there first")
        low, high = (int(bound) for bound in labels.aminmax())
        if low < 0 or high >= len(self.classes):
            raise ValueError(f"labels lie in [{low}, {high}], the bundle's {len(self.classes)} classes from 0 on")


def _check_tensor(name: str, given: object, expected: str) -> None:
    if isinstance(given, Tensor):
        return
    kind = type(given).__name__
    how = {"list": "torch.stack(LIST)", "tuple": "torch.stack(LIST)", "ndarray": "torch.from_numpy(ARRAY)"}
    raise ValueError(
        f"{name} are a {kind}, expected a torch.Tensor, {expected}; pass {how.get(kind, 'a tensor')} instead"
    )
