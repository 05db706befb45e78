"""What a policy does to real images: which samples weigh most, how losses and magnitudes matter, what classes like."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import RunConfig
from ..data.splits import DataSplits, Split, load_splits
from ..policy.compatibility import DatasetComparison
from ..policy.policy_bundle import PolicyBundle
from ..policy.sampler import TransformationSampler
from ..runtime.random import generator
from ..transforms.basic import Normalisation
from ..transforms.space import HAS_MAGNITUDE, MAX_LEVEL, OPERATION_NAMES
from ..transforms.transformation import Transformation
from .sample_weights import SampleWeights, relative_weights
from .tables import Numbers

IDENTITY = OPERATION_NAMES.index("Identity")
SHOWN = 12  # samples of each kind
LEVELS = tuple(float(level) for level in range(0, 11, 2))
RESPONSE_IMAGES = 16
MOST_CLASSES = 40
FEWEST = 4  # images of a class, where it has so many
MIDDLE = 5.0  # the level at which classes are compared


@dataclass(frozen=True)
class Response:
    """Weight against magnitude: of each first operation, followed by Identity, over that of the image as it is.

    Attributes:
        names: of the operations.
        levels: [L].
        low, median, high: [K, L], quartiles over the images; rows of operations without a magnitude are constant.
        images: that were looked at.
        real: whether they are the data set's, or synthetic ones.
    """

    names: Sequence[str]
    levels: Sequence[float]
    low: Numbers
    median: Numbers
    high: Numbers
    images: int
    real: bool


@dataclass(frozen=True)
class Samples:
    """n images of the training split under transformations drawn from p_jk, weighed as one batch.

    Attributes:
        originals, images: uint8 [n, C, S, S], before and after.
        labels: int64 [n].
        transformation: of n images.
        weights: float64 [n], mean 1.
        losses: float64 [n] of the bundle's own network, or None where the file holds no classifier.
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
        """Positions of the samples with the smallest weights."""
        return self._order[:count]

    def heaviest(self, count: int = SHOWN) -> list[int]:
        """Positions of the samples with the largest weights."""
        return self._order[::-1][:count]

    def against_the_loss(self, count: int = SHOWN) -> tuple[list[int], list[int]]:
        """Positions of samples with a high loss and a low weight, and of those with a low loss and a high weight.

        They are those whose ranks differ most: MetaAugment's Figure 3 (Zhou et al., AAAI 2021).
        """
        if self.losses is None:
            return [], []
        by_loss, by_weight = (values.argsort(stable=True).argsort() for values in (self.losses, self.weights))
        order = (by_loss - by_weight).argsort(descending=True, stable=True).tolist()
        gaps = (by_loss - by_weight).tolist()
        hard = [position for position in order[:count] if gaps[position] > 0]
        easy = [position for position in order[::-1][:count] if gaps[position] < 0]
        return hard, easy


@dataclass(frozen=True)
class Preferences:
    """Weight by operation in each class, over the mean over classes.

    Each image meets every operation at level 5, followed by Identity, and each weight is taken over the image's mean:
    what tells images apart is not mistaken for what tells classes apart.

    Attributes:
        labels: of the classes that were looked at.
        ratios, errors: [classes, K], and standard errors.
        images: of each class.
    """

    labels: Sequence[int]
    ratios: Numbers
    errors: Numbers
    images: int


def open_splits(bundle: PolicyBundle, config: RunConfig, device: torch.device) -> DataSplits:
    """The bundle's data set, as it was split for the search; the test split is not opened.

    Args:
        bundle: whose it is.
        config: where the data lies, and how it is held.
        device: where batches go.

    Raises:
        UsageError, InputError, EnvironmentFault: it cannot be had, or is another one.
    """
    check = DatasetComparison(bundle, allow=False)
    return load_splits(config.with_changes(batch_size=1), device, "search", bundle.meta_validation, check)


def chosen_images(split: Split, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, C, S, S] and labels int64 [n] of a split, on its device, without random crops."""
    ((images, labels),) = split.batches([(0, positions)])
    return images, labels


def draw_samples(sample_weights: SampleWeights, split: Split, count: int, seed: int = 0) -> Samples:
    """Some training images under transformations from p_jk, their weights and, where that can be known, losses.

    Args:
        sample_weights: of the bundle.
        split: whose images.
        count: of the images; all of a smaller split.
        seed: of images and transformations.
    """
    positions = torch.randperm(len(split), generator=generator(seed, "report", "images", 0))[:count]
    images, labels = chosen_images(split, positions)
    sampler = TransformationSampler(probabilities=sample_weights.bundle.probabilities)
    drawn = sampler.sample(len(images), generator(seed, "report", "transformation", 0)).to(images.device)
    augmented = sample_weights.augmented(images, drawn)
    weights = relative_weights(sample_weights.logits(augmented, drawn))
    losses = classifier_losses(sample_weights, augmented, labels)
    there = torch.device("cpu")
    return Samples(images.cpu(), augmented.cpu(), labels.cpu(), drawn.to(there), weights.cpu(), losses)


def classifier_losses(sample_weights: SampleWeights, augmented: Tensor, labels: Tensor) -> Tensor | None:
    """Cross entropy of the bundle's own network, in evaluation mode, float64 [n]; None without its classifier."""
    bundle = sample_weights.bundle
    if not bundle.has_classifier:
        return None
    contract = bundle.manifest.input
    network = bundle.build_extractor(sample_weights.device)
    normalised, found = Normalisation(contract.mean, contract.std, sample_weights.device), []
    with torch.inference_mode():
        for rows in torch.arange(len(augmented)).split(sample_weights.chunk):
            logits = network(normalised(augmented[rows]))
            found.append(F.cross_entropy(logits.double(), labels[rows], reduction="none"))
    return torch.cat(found).cpu()


def respond(sample_weights: SampleWeights, images: Tensor, real: bool) -> Response:
    """Weight against magnitude, over the first `RESPONSE_IMAGES` of the images.

    Args:
        sample_weights: of the bundle.
        images: uint8 [n, C, S, S].
        real: whether they are the data set's.
    """
    images = images[:RESPONSE_IMAGES].to(sample_weights.device)
    count = len(images)
    signs = torch.arange(count) % 2 * 2.0 - 1
    low, median, high = (np.ones((len(OPERATION_NAMES), len(LEVELS))) for _ in range(3))
    as_it_is = _logits(sample_weights, images, IDENTITY, torch.zeros(count))
    for operation, moves in enumerate(HAS_MAGNITUDE):
        for column, level in enumerate(LEVELS if moves else LEVELS[:1]):
            logits = _logits(sample_weights, images, operation, level * signs)
            ratios = (F.logsigmoid(logits) - F.logsigmoid(as_it_is)).exp().cpu().numpy()
            columns = column if moves else slice(None)
            low[operation, columns], median[operation, columns], high[operation, columns] = np.quantile(
                ratios, (0.25, 0.5, 0.75)
            )
    return Response(OPERATION_NAMES, LEVELS, low, median, high, count, real)


def prefer(sample_weights: SampleWeights, split: Split, samples: int, seed: int = 0) -> Preferences | None:
    """What classes prefer, or None where no class has two images.

    Args:
        sample_weights: of the bundle.
        split: whose images.
        samples: augmented images to weigh, about; of many classes `MOST_CLASSES` are looked at, evenly spaced.
        seed: of the choice of images.
    """
    order = torch.randperm(len(split), generator=generator(seed, "report", "classes", 0))
    by_class = {label: order[split.labels[order] == label] for label in split.labels.unique().tolist()}
    known = [label for label, positions in by_class.items() if len(positions) > 1]
    if not known:
        return None
    labels = [known[int(at)] for at in np.linspace(0, len(known) - 1, min(len(known), MOST_CLASSES))]
    wanted = max(FEWEST, samples // (len(labels) * len(OPERATION_NAMES)))
    each = min([wanted, *(len(by_class[label]) for label in labels)])
    images, _ = chosen_images(split, torch.cat([by_class[label][:each] for label in labels]))
    signs = torch.arange(len(images)) % 2 * 2.0 - 1
    logits = [_logits(sample_weights, images, operation, MIDDLE * signs) for operation in range(len(OPERATION_NAMES))]
    weights = F.logsigmoid(torch.stack(logits, 1)).softmax(1).cpu().numpy()  # over each image's sum
    grouped = weights.reshape(len(labels), -1, len(OPERATION_NAMES))
    means = grouped.mean(1)
    errors = grouped.std(1, ddof=1) / np.sqrt(grouped.shape[1])
    overall = means.mean(0)
    return Preferences(labels, means / overall, errors / overall, grouped.shape[1])


def _logits(sample_weights: SampleWeights, images: Tensor, operation: int, magnitudes: Tensor) -> Tensor:
    """Of every image under one operation, followed by Identity."""
    assert magnitudes.abs().max() <= MAX_LEVEL
    count = len(images)
    first, second = (torch.full((count,), position) for position in (operation, IDENTITY))
    transformation = Transformation(first, second, magnitudes, torch.zeros(count)).to(images.device)
    return sample_weights.logits(sample_weights.augmented(images, transformation), transformation)
