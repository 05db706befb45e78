"""Which operations get more weight in one class than in the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..data.splits import Split
from ..runtime.random import generator
from .sample_weights import SampleWeights
from .samples import load_images
from .tables import Numbers

LEVEL = 5.0  # of every operation
MOST_CLASSES = 40
FEWEST_IMAGES = 4  # of a class, unless it has fewer


@dataclass(frozen=True)
class ClassPreferences:
    """Weight of each operation in each class, over the mean of that weight over classes.

    Each image is transformed by every operation at level 5, followed by Identity, and its weights are divided by their
    mean. Differences between images therefore do not count as differences between classes.

    Attributes:
        labels: the classes.
        ratios, errors: float64 [classes, K], and their standard errors.
        images: number of images of each class.
    """

    labels: Sequence[int]
    ratios: Numbers
    errors: Numbers
    images: int


def class_preferences(
    sample_weights: SampleWeights, split: Split, samples: int, seed: int = 0
) -> ClassPreferences | None:
    """Measure the preferences of at most `MOST_CLASSES` evenly spaced classes; None if no class has two images.

    Args:
        sample_weights: of the bundle.
        split: split to choose images from.
        samples: approximate number of transformed images.
        seed: seed of the choice of images.
    """
    order = torch.randperm(len(split), generator=generator(seed, "report", "classes", 0))
    by_class = {label: order[split.labels[order] == label] for label in split.labels.unique().tolist()}
    known = [label for label, positions in by_class.items() if len(positions) > 1]
    if not known:
        return None
    labels = [known[int(at)] for at in np.linspace(0, len(known) - 1, min(len(known), MOST_CLASSES))]
    operations = sample_weights.space.size
    wanted = max(FEWEST_IMAGES, samples // (len(labels) * operations))
    each = min([wanted, *(len(by_class[label]) for label in labels)])
    images, _ = load_images(split, torch.cat([by_class[label][:each] for label in labels]))
    signs = torch.arange(len(images)) % 2 * 2.0 - 1
    logits = [sample_weights.operation_logits(images, operation, LEVEL * signs) for operation in range(operations)]
    weights = F.logsigmoid(torch.stack(logits, 1)).softmax(1).cpu().numpy()  # each image's weights sum to 1
    by_label = weights.reshape(len(labels), -1, operations)
    means = by_label.mean(1)
    errors = by_label.std(1, ddof=1) / np.sqrt(by_label.shape[1])
    overall = means.mean(0)
    return ClassPreferences(labels, means / overall, errors / overall, by_label.shape[1])
