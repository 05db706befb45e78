"""Training images under transformations drawn from p_jk, with their weights and losses."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import RunConfig
from ..data.splits import DataSplits, Split, load_splits
from ..policy.compatibility import DatasetComparison
from ..policy.policy_bundle import PolicyBundle
from ..runtime.random import generator
from ..transforms.basic import Normalisation
from ..transforms.transformation import Transformation
from .sample_weights import SampleWeights, relative_weights

SHOWN = 12  # samples in each selection
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Samples:
    """n training images under transformations drawn from p_jk, weighted as one batch. All tensors are on the CPU.

    Attributes:
        originals, images: uint8 [n, C, S, S], before and after the transformation.
        labels: int64 [n].
        transformation: the n transformations.
        weights: float64 [n], mean 1.
        losses: float64 [n], cross entropy of the bundle's network; None if the file holds no classifier.
    """

    originals: Tensor
    images: Tensor
    labels: Tensor
    transformation: Transformation
    weights: Tensor
    losses: Tensor | None

    @cached_property
    def _order(self) -> list[int]:
        order: list[int] = self.weights.argsort(stable=True).tolist()
        return order

    def lightest(self, count: int = SHOWN) -> list[int]:
        """Positions of the smallest weights, smallest first."""
        return self._order[:count]

    def heaviest(self, count: int = SHOWN) -> list[int]:
        """Positions of the largest weights, largest first."""
        return self._order[::-1][:count]

    def against_the_loss(self, count: int = SHOWN) -> tuple[list[int], list[int]]:
        """Positions of samples with high loss and low weight, and of samples with low loss and high weight.

        These are the samples whose ranks by loss and by weight differ most: MetaAugment's Figure 3 (Zhou et al.,
        AAAI 2021). Both lists are empty without losses.
        """
        if self.losses is None:
            return [], []
        by_loss, by_weight = (values.argsort(stable=True).argsort() for values in (self.losses, self.weights))
        order = (by_loss - by_weight).argsort(descending=True, stable=True).tolist()
        gaps = (by_loss - by_weight).tolist()
        hard = [position for position in order[:count] if gaps[position] > 0]
        easy = [position for position in order[::-1][:count] if gaps[position] < 0]
        return hard, easy


def open_splits(bundle: PolicyBundle, config: RunConfig, device: torch.device) -> DataSplits:
    """The bundle's data set, split as in the search. The test split is not opened.

    Args:
        bundle: the searched bundle.
        config: where the data set lies and how it is loaded.
        device: device of the batches.

    Raises:
        UsageError, InputError, EnvironmentFault: the data set cannot be loaded, or is not the bundle's.
    """
    check = DatasetComparison(bundle, allow=False)
    return load_splits(config.with_changes(batch_size=1), device, "search", bundle.meta_validation, check)


def load_images(split: Split, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, C, S, S] and labels int64 [n] at these positions of a split, without random crops."""
    ((images, labels),) = split.batches([(0, positions)])
    return images, labels


def draw_samples(sample_weights: SampleWeights, split: Split, count: int, seed: int = 0) -> Samples:
    """Draw training images and transformations, and compute weights and losses.

    Args:
        sample_weights: of the bundle.
        split: split to draw images from.
        count: number of images; a smaller split is used whole.
        seed: seed of images and transformations.
    """
    positions = torch.randperm(len(split), generator=generator(seed, "report", "images", 0))[:count]
    images, labels = load_images(split, positions)
    sampler = sample_weights.bundle.sampler()
    transformation = sampler.sample(len(images), generator(seed, "report", "transformation", 0)).to(images.device)
    augmented = sample_weights.augmented(images, transformation)
    weights = relative_weights(sample_weights.logits(augmented, transformation))
    losses = classifier_losses(sample_weights, augmented, labels)
    return Samples(images.cpu(), augmented.cpu(), labels.cpu(), transformation.to(CPU), weights.cpu(), losses)


def classifier_losses(sample_weights: SampleWeights, augmented: Tensor, labels: Tensor) -> Tensor | None:
    """Cross entropy of the bundle's network in evaluation mode, float64 [n]; None if the bundle has no classifier."""
    bundle = sample_weights.bundle
    if not bundle.has_classifier:
        return None
    contract = bundle.manifest.input
    network = bundle.build_extractor(sample_weights.device)
    normalise, losses = Normalisation(contract.mean, contract.std, sample_weights.device), []
    with torch.inference_mode():
        for rows in torch.arange(len(augmented)).split(sample_weights.chunk):
            logits = network(normalise(augmented[rows]))
            losses.append(F.cross_entropy(logits.double(), labels[rows], reduction="none"))
    return torch.cat(losses).cpu()
