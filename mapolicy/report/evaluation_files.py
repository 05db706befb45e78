"""An evaluation as files: tables for spreadsheets, and pictures of the confusion matrix and of the reliability."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..inference.measures import Evaluation
from ..runtime.sanitize import printable
from . import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COUNTED, NAMED = 25, 60  # classes up to which the picture has the numbers, and the names
INCHES, LEAST_INCHES, MOST_INCHES = 0.3, 4.0, 14.0  # for a class, and of the picture


def evaluation_files(
    evaluation: Evaluation, confusion: Sequence[Sequence[int]], document: Mapping[str, Any]
) -> dict[str, bytes]:
    """Content by file name: evaluation.json, classes.csv, confusion.csv, and the pictures as PNG and SVG.

    Args:
        evaluation: the figures.
        confusion: images of each class (row) that are predicted as each class (column).
        document: everything but the confusion, as plain values.
    """
    names = [row.name for row in evaluation.classes]
    classes = [[row.name, row.images, _cell(row.recall), _cell(row.precision)] for row in evaluation.classes]
    counts = [[name, *row] for name, row in zip(names, confusion, strict=True)]
    found = {
        "evaluation.json": (json.dumps(document, indent=2) + "\n").encode(),
        "classes.csv": _table(["class", "images", "recall", "precision"], classes),
        "confusion.csv": _table(["label \\ predicted", *names], counts),
    }
    pictures = {"confusion": confusion_figure(names, confusion), "reliability": reliability_figure(evaluation)}
    for name, figure in pictures.items():
        found |= {f"{name}.{form}": content for form, content in figures.rendered(figure).items()}
    return found


def confusion_figure(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> "Figure":
    """Draw a confusion matrix: each row's shares as colours, the images as numbers where there are few classes."""
    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with figures.style():
        from matplotlib.figure import Figure

        side = min(max(LEAST_INCHES, INCHES * len(names) + 1.5), MOST_INCHES)
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        if len(names) <= COUNTED:
            for row, column in np.argwhere(counts).tolist():
                colour = "white" if shares[row, column] > 0.6 else figures.INK
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
        if len(names) <= NAMED:
            shown = [printable(name)[: figures.LONGEST_NAME] for name in names]
            axes.set_xticks(range(len(names)), shown, rotation=90, fontsize=7)
            axes.set_yticks(range(len(names)), shown, fontsize=7)
        axes.set(xlabel="predicted", ylabel="label", title="share of each label's images")
        axes.grid(visible=False)
        return figure


def reliability_figure(evaluation: Evaluation) -> "Figure":
    """Draw accuracy against confidence, with the number of images below."""
    bins = evaluation.bins
    width = bins[0].high - bins[0].low
    middles = [(each.low + each.high) / 2 for each in bins]

    def accuracy(axes: "Axes") -> None:
        axes.bar(middles, [each.accuracy for each in bins], width=0.9 * width, color=figures.FIRST)
        axes.plot([0, 1], [0, 1], color=figures.SECOND, linestyle="--", linewidth=1)
        title = f"calibration error {evaluation.calibration_error:.2f} %"
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=title)

    def images(axes: "Axes") -> None:
        axes.bar(middles, [each.images for each in bins], width=0.9 * width, color=figures.PALE)
        axes.set(xlim=(0, 1), xlabel="confidence", ylabel="images")

    with figures.style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4, 5), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=(3, 1))
        accuracy(upper)
        images(lower)
        return figure


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
