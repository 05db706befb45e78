"""Tables of numbers around a middle, as heat maps: p_jk, what changed of it, and what classes prefer. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

CLEAR = 2  # standard errors


@dataclass(frozen=True)
class HeatTable:
    """A table whose cells say a number and show how far it lies from the middle.

    Attributes:
        key: short name, of letters: for addresses within a page and for files.
        title: what it shows.
        scale: what the colours mean.
        across, down: what columns and rows are.
        rows, columns: their names.
        values: float64 [rows, columns].
        texts: the values as they are written, in the same order.
        details: a sentence about each.
        strength: [rows, columns] in [-1, 1], the colour: 0 in the middle.
        totals: text of each row's and each column's sum, where these mean something.
    """

    key: str
    title: str
    scale: str
    across: str
    down: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Numbers
    texts: Sequence[Sequence[str]]
    details: Sequence[Sequence[str]]
    strength: Numbers
    totals: tuple[Sequence[str], Sequence[str]] | None = None


def probability_table(probabilities: Any, means: Any, names: Sequence[str]) -> HeatTable:
    """p_jk, MetaAugment's Figure 2 (Zhou et al., AAAI 2021): a row for each first operation, in per cent.

    Args:
        probabilities: p_jk [K, K].
        means: mean raw policy outputs v_jk [K, K].
        names: of the K operations.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    uniform = 1 / values.size
    strength, reach = _strength(values / uniform - 1)
    details = [
        [
            f"{first}, then {second}: p = {100 * p:.4f} %, {p / uniform:.3f} times uniform; "
            f"mean policy output {mean:.4f}"
            for second, p, mean in zip(names, row, outputs, strict=True)
        ]
        for first, row, outputs in zip(names, values, np.asarray(means, dtype=np.float64), strict=True)
    ]
    return HeatTable(
        key="probabilities",
        title="Probability of each transformation (p_jk), per cent",
        scale=f"Uniform is {100 * uniform:.3f} %. The strongest colour is {reach:.2%} away from it.",
        across="second operation",
        down="first operation",
        rows=names,
        columns=names,
        values=values,
        texts=[[f"{100 * p:.3f}" for p in row] for row in values],
        details=details,
        strength=strength,
        totals=([f"{100 * total:.2f}" for total in values.sum(1)], [f"{100 * total:.2f}" for total in values.sum(0)]),
    )


def change_table(before: Any, after: Any, names: Sequence[str]) -> HeatTable:
    """How p_jk of one policy differs from another's, in per cent of the other's.

    Args:
        before, after: p_jk [K, K].
        names: of the K operations.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    tiny = np.finfo(np.float32).tiny  # a probability may be 0
    values = after / np.maximum(before, tiny) - 1
    strength, reach = _strength(values)
    return HeatTable(
        key="changes",
        title="Change of each transformation's probability, per cent of what it was",
        scale=f"The strongest colour is a change by {reach:.2%}.",
        across="second operation",
        down="first operation",
        rows=names,
        columns=names,
        values=values,
        texts=[[_signed(value) for value in row] for row in values],
        details=[
            [
                f"{first}, then {second}: {100 * old:.4f} % against {100 * new:.4f} %, a change by {change:+.2%}"
                for second, old, new, change in zip(names, *row, strict=True)
            ]
            for first, *row in zip(names, before, after, values, strict=True)
        ],
        strength=strength,
    )


def preference_table(
    classes: Sequence[str], names: Sequence[str], ratios: Numbers, errors: Numbers, images: int, known: int
) -> HeatTable:
    """What classes prefer: weight by operation against the mean over classes, in per cent.

    Args:
        classes: names of the rows.
        names: of the operations.
        ratios: [classes, K], 1 where a class weighs an operation as the classes do on average.
        errors: standard errors of `ratios`.
        images: of each class.
        known: classes that the data set has.
    """
    values = ratios - 1
    part = (
        "" if known == len(classes) else f" {len(classes)} of {known} classes, evenly spaced; the mean is over these."
    )
    strength, reach = _strength(np.where(np.abs(values) > CLEAR * errors, values, 0))
    return HeatTable(
        key="classes",
        title="Weight of each operation in a class, against all classes, per cent",
        scale=f"Coloured is what lies more than {CLEAR} standard errors away from the mean over classes, at most "
        f"{reach:.2%}; {images} images of each class.{part}",
        across="operation",
        down="class",
        rows=classes,
        columns=names,
        values=values,
        texts=[[_signed(value) for value in row] for row in values],
        details=[
            [
                f"class {label}, {name}: {value:+.2%} against all classes, standard error {error:.2%}"
                for name, value, error in zip(names, *row, strict=True)
            ]
            for label, *row in zip(classes, values, errors, strict=True)
        ],
        strength=strength,
    )


def _signed(value: float) -> str:
    if value >= 10:
        return f"{value + 1:.0f}x"
    return "0.0" if abs(value) < 0.0005 else f"{100 * value:+.1f}"


def _strength(relative: Numbers) -> tuple[Numbers, float]:
    """The values over their largest size, which is what there is: policies differ by a hundredth or by a factor."""
    reach = max(float(np.abs(relative).max()), 1e-4)
    return relative / reach, reach
