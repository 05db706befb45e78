"""From uint8 images to a network's input: base augmentation, policy, Cutout, normalisation. Both stages use this one.

Order and sizes: MetaAugment (Zhou et al., AAAI 2021), section "Experiments": flip, zero-pad and crop, transformation,
Cutout of 16 x 16 on CIFAR; the transformation alone on Omniglot; on ImageNet it follows the random resized crop (made
by the decoder) and the flip.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import RunConfig
from ..distributed import ALONE, Communicator
from ..errors import EnvironmentFault
from ..runtime.random import generator
from ..runtime.shard import Shard
from ..transforms.basic import Normalisation, cutout, flip, pad_and_crop
from ..transforms.transformation import Transformation
from .augmentations import Augmentation, FollowsProgress

CROP_PADDING_SHARE = 1 / 8  # 4 of 32 pixels


@dataclass(frozen=True)
class AugmentedBatch:
    """A batch on its way into the network; n counts all copies of all images.

    Attributes:
        images: uint8 [n, C, H, W], augmented.
        inputs: float32 [n, C, H, W], the same normalised.
        labels: int64 [n].
        transformation: of n images; None if the policy does not draw from an operation space.
    """

    images: Tensor
    inputs: Tensor
    labels: Tensor
    transformation: Transformation | None


@dataclass(frozen=True)
class PipelineSettings:
    """The fields of `RunConfig` that the pipeline reads, for use without a run."""

    base_augmentation: str
    cutout: int
    fill: str
    copies: int
    seed: int
    stage: str


class Pipeline:
    """Everything between the data set and the network, with its own random streams.

    Args:
        config: of the run; its base_augmentation, cutout, fill, copies, seed and stage are used.
        mean, std: one float per channel in [0, 1] units, for the normalisation and the fill.
        device: of the images.
        communicator: to the processes that have the other parts of a batch.
    """

    def __init__(
        self,
        config: RunConfig | PipelineSettings,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        communicator: Communicator = ALONE,
    ) -> None:
        self.config, self._communicator = config, communicator
        self.mean, self.std, self.device = tuple(mean), tuple(std), device
        self._normalisation = Normalisation(mean, std, device)
        self._mean_colour = self._normalisation.mean_colour()
        self._fill = self._mean_colour if config.fill == "mean" else torch.zeros_like(self._mean_colour)

    def with_config(self, config: RunConfig) -> "Pipeline":
        """The same data, another configuration."""
        return Pipeline(config, self.mean, self.std, self.device, self._communicator)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32 with mean 0 and deviation 1 over the training split."""
        return self._normalisation(images)

    def augment(
        self, images: Tensor, labels: Tensor, augmentation: Augmentation, step: int, progress: float | None = None
    ) -> AugmentedBatch:
        """A training batch of `copies` augmentations of every image.

        Args:
            images: uint8 [B, C, H, W], this process's part of the batch.
            labels: int64 [B].
            augmentation: the policy's part.
            step: iteration; with the seed it fixes every draw.
            progress: share of the run that is done, for a policy that changes over a run; None if it is not known.
        """
        images, transformation = self.transform(images, augmentation, step, progress)
        return AugmentedBatch(
            images=images,
            inputs=self.normalise(images),
            labels=_repeated(labels, self.config.copies),
            transformation=transformation,
        )

    def transform(
        self, images: Tensor, augmentation: Augmentation, step: int, progress: float | None = None
    ) -> tuple[Tensor, Transformation | None]:
        """The part of `augment` that stays uint8: the augmented images, and their transformations."""
        config = self.config
        images = _repeated(images, config.copies)
        shard = self._communicator.shard(len(images) * self._communicator.size)
        images = self._base(images, generator(config.seed, config.stage, "base", step), shard)
        if isinstance(augmentation, FollowsProgress):
            augmentation = augmentation.at(progress)
        draws = generator(config.seed, config.stage, "transformation", step)
        augmented: object = augmentation(images, self._fill, draws, shard)
        images, transformation = _check_augmented(augmented, images, augmentation, config)
        if config.cutout:
            draws = generator(config.seed, config.stage, "cutout", step)
            images = cutout(images, config.cutout, self._mean_colour, draws, shard)
        return images, transformation

    def _base(self, images: Tensor, draws: torch.Generator, shard: Shard) -> Tensor:
        if self.config.base_augmentation == "none":
            return images
        images = flip(images, draws, shard)
        if self.config.base_augmentation == "random_resized_crop":
            return images
        return pad_and_crop(images, round(images.shape[-1] * CROP_PADDING_SHARE), draws, shard)


def _repeated(tensor: Tensor, copies: int) -> Tensor:
    return tensor if copies == 1 else tensor.repeat_interleave(copies, dim=0)


def _check_augmented(
    given: object, images: Tensor, augmentation: Augmentation, config: RunConfig | PipelineSettings
) -> tuple[Tensor, Transformation | None]:
    """What an augmentation returned, which may be code from outside.

    Raises:
        EnvironmentFault: it is not a pair of uint8 images of the same shape and a `Transformation` or None.
    """
    match given:
        case (Tensor(dtype=torch.uint8, shape=images.shape) as augmented, None | Transformation() as transformation):
            return augmented, transformation
        case (Tensor() as augmented, other):
            found = f"{augmented.dtype} {list(augmented.shape)} and a {type(other).__name__}"
        case _:
            found = f"a {type(given).__name__}"
    name = getattr(config, "policy", type(augmentation).__name__)
    why = f"it returned {found}, expected torch.uint8 {list(images.shape)} and a Transformation or None"
    raise EnvironmentFault(f"policy {name}", why, "mend the class that registers it")
