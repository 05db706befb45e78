"""How good a classifier is: accuracy, figures for each class, confusion, calibration. scikit-learn counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 15  # of confidence, as in Guo et al. (2017)
TOP = 5  # likeliest classes in which `top5` looks


@dataclass(frozen=True)
class Outcomes:
    """What a network says of n images.

    Attributes:
        predicted: int64 [n], the likeliest class.
        confidence: float64 [n], its probability.
        in_top5: int64 [n], 1 where the label is among the five likeliest classes.
    """

    predicted: Tensor
    confidence: Tensor
    in_top5: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Self:
        """The outcomes of one batch: logits float [B, K], labels int64 [B], on one device."""
        ranked = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        confidence = logits.double().softmax(dim=1).gather(1, ranked[:, :1])[:, 0]
        return cls(ranked[:, 0], confidence, (ranked == labels[:, None]).any(dim=1).long())

    @classmethod
    def joined(cls, parts: Sequence["Outcomes"]) -> Self:
        """The outcomes of several batches as one, on the CPU."""
        columns = ((part.predicted, part.confidence, part.in_top5) for part in parts)
        return cls(*(torch.cat([each.cpu() for each in column]) for column in zip(*columns, strict=True)))


@dataclass(frozen=True)
class ClassFigures:
    """How good a network is at one class; percentages.

    Attributes:
        name: of the class.
        images: with this label.
        recall: of the images with this label, those predicted as it; None without images.
        precision: of the images predicted as it, those with this label; None where it is never predicted.
    """

    name: str
    images: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies between two numbers; `confidence` and `accuracy` are their means in [0, 1]."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on labelled images; percentages.

    Attributes:
        images: their number.
        top1, top5: images whose label is the likeliest class, or among the five likeliest.
        balanced_accuracy: mean of the classes' recalls, over classes with images.
        calibration_error: expected calibration error (ECE, Guo et al. 2017): by how much confidence and accuracy
            differ, mean over the images, within bins of confidence.
        classes: figures of each class, in the order of the labels.
        bins: the bins of confidence that hold images.
    """

    images: int
    top1: float
    top5: float
    balanced_accuracy: float
    calibration_error: float
    classes: tuple[ClassFigures, ...]
    bins: tuple[Bin, ...]

    @classmethod
    def of(cls, labels: Tensor, outcomes: Outcomes, classes: Sequence[str]) -> Self:
        """Count.

        Args:
            labels: int64 [n], n at least 1.
            outcomes: of the same images, in the same order.
            classes: names, by label.
        """
        from sklearn.metrics import precision_recall_fscore_support

        truth, said = labels.cpu().numpy(), outcomes.predicted.cpu().numpy()
        right, confidence = truth == said, outcomes.confidence.cpu().numpy()
        # Not a number where there is nothing to divide by.
        precision, recall, _, support = precision_recall_fscore_support(
            truth, said, labels=np.arange(len(classes)), zero_division=np.nan
        )
        columns = zip(classes, support.tolist(), recall.tolist(), precision.tolist(), strict=True)
        bins = _bins(confidence, right)
        return cls(
            images=len(truth),
            top1=100 * int(right.sum()) / len(truth),
            top5=100 * int(outcomes.in_top5.sum()) / len(truth),
            balanced_accuracy=100 * float(np.mean(recall[support > 0])),
            calibration_error=100 * sum(b.images * abs(b.accuracy - b.confidence) for b in bins) / len(truth),
            classes=tuple(ClassFigures(name, count, _share(r), _share(p)) for name, count, r, p in columns),
            bins=bins,
        )

    def figures(self) -> dict[str, float]:
        """The figures of all images, by name."""
        names = ("top1", "top5", "balanced_accuracy", "calibration_error")
        return {name: getattr(self, name) for name in names}

    def class_table(self) -> dict[str, dict[str, Any]]:
        """Images, recall and precision of each class by its name, with two decimals."""
        return {
            row.name: {"images": row.images, "recall": _rounded(row.recall), "precision": _rounded(row.precision)}
            for row in self.classes
        }

    def weakest(self) -> ClassFigures:
        """The class with the lowest recall."""
        return min((row for row in self.classes if row.recall is not None), key=lambda row: row.recall or 0.0)


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> NDArray[np.int64]:
    """How many images of each class (row) are predicted as each class (column), int64 [K, K]."""
    from sklearn.metrics import confusion_matrix

    counts: NDArray[np.int64] = confusion_matrix(
        labels.cpu().numpy(), predicted.cpu().numpy(), labels=np.arange(classes)
    )
    return counts


def _bins(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    # A bin holds its upper end, as in Guo et al.
    places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    found = []
    for place in np.unique(places).tolist():
        inside = places == place
        mean, share = float(confidence[inside].mean()), float(right[inside].mean())
        found.append(Bin(place / BINS, (place + 1) / BINS, int(inside.sum()), mean, share))
    return tuple(found)


def _share(value: float) -> float | None:
    return None if np.isnan(value) else 100 * value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
