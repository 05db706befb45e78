"""Heat maps as plain data: p_jk, its change, frequencies of levels, preferences of classes. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.findings import at_levels, how_often, relative_frequencies
from ..transforms.space import MAX_LEVEL, OperationSpace

Numbers = NDArray[np.float64]

CLEAR = 2  # standard errors


@dataclass(frozen=True)
class HeatTable:
    """A table of numbers with a colour for each cell.

    Attributes:
        key: short name in letters, for anchors on the page and for file names.
        title: heading.
        scale: a sentence that explains the colours.
        across, down: what the columns and the rows stand for.
        rows, columns: their names.
        values: float64 [rows, columns].
        texts: text of each cell.
        details: a sentence about each cell.
        strength: float64 [rows, columns] in [-1, 1]; the colour, 0 is neutral.
        totals: texts of the row sums and of the column sums; None if sums mean nothing.
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
    """p_jk in per cent, a row for each first operation: MetaAugment's Figure 2 (Zhou et al., AAAI 2021).

    Args:
        probabilities: p_jk [K, K].
        means: mean raw policy outputs v_jk [K, K].
        names: names of the K operations.
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
    return _pair_table(
        names,
        key="probabilities",
        title="Probability of each transformation (p_jk), per cent",
        scale=f"Uniform is {100 * uniform:.3f} %. The strongest colour is {reach:.2%} away from it.",
        values=values,
        texts=[[f"{100 * p:.3f}" for p in row] for row in values],
        details=details,
        strength=strength,
        totals=([f"{100 * total:.2f}" for total in values.sum(1)], [f"{100 * total:.2f}" for total in values.sum(0)]),
    )


def level_table(log_levels: Numbers, strength: float, space: OperationSpace) -> HeatTable:
    """How often each operation and signed level is drawn, over how often a uniform draw takes it.

    Args:
        log_levels: float [stages, K, bins] of an alignment sampler.
        strength: kappa.
        space: the K operations.
    """
    values = relative_frequencies(log_levels, strength)
    edges = np.linspace(-MAX_LEVEL, MAX_LEVEL, values.shape[1] + 1)
    spans = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    strengths, reach = _strength(values - 1)
    return HeatTable(
        key="levels",
        title="How often each operation is drawn at each level, times a uniform draw",
        scale="1 is as often as at random, 0 is never. Levels below 0 are the other direction; an operation without a "
        f"direction has the same number on both sides. The strongest colour is {reach:.2f} away from 1.",
        across="level",
        down="operation",
        rows=space.names,
        columns=[f"{low:g} to {high:g}" for low, high in spans],
        values=values,
        texts=[[f"{value:.2f}" for value in row] for row in values],
        details=[
            [
                f"{at_levels(name, low, high, space)}: drawn {how_often(float(value))}"
                for value, (low, high) in zip(row, spans, strict=True)
            ]
            for name, row in zip(space.names, values, strict=True)
        ],
        strength=strengths,
    )


def change_table(before: Any, after: Any, names: Sequence[str]) -> HeatTable:
    """Relative change of p_jk from one policy to another, in per cent.

    Args:
        before, after: p_jk [K, K].
        names: names of the K operations.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    tiny = np.finfo(np.float32).tiny  # a probability may be 0
    values = after / np.maximum(before, tiny) - 1
    strength, reach = _strength(values)
    return _pair_table(
        names,
        key="changes",
        title="Relative change of each transformation's probability, per cent",
        scale=f"The strongest colour is a change of {reach:.2%}.",
        values=values,
        texts=[[_signed(value) for value in row] for row in values],
        details=[
            [
                f"{first}, then {second}: {100 * old:.4f} % before, {100 * new:.4f} % now, a change of {change:+.2%}"
                for second, old, new, change in zip(names, *row, strict=True)
            ]
            for first, *row in zip(names, before, after, values, strict=True)
        ],
        strength=strength,
    )


def preference_table(
    classes: Sequence[str], names: Sequence[str], ratios: Numbers, errors: Numbers, images: int, known: int
) -> HeatTable:
    """Weight of each operation in each class, relative to the mean over classes, in per cent.

    Args:
        classes: names of the classes shown, the rows.
        names: names of the K operations.
        ratios: [classes, K], a class's weight of an operation over the mean of that weight over classes.
        errors: standard errors of `ratios`.
        images: number of images of each class.
        known: number of classes of the data set.
    """
    values = ratios - 1
    chosen = (
        "" if known == len(classes) else f" {len(classes)} of {known} classes, evenly spaced; the mean is over these."
    )
    strength, reach = _strength(np.where(np.abs(values) > CLEAR * errors, values, 0))
    return HeatTable(
        key="classes",
        title="Weight of each operation in a class, relative to the mean over classes, per cent",
        scale=f"A cell has a colour if it differs from the mean over classes by more than {CLEAR} standard errors; "
        f"the strongest colour is {reach:.2%}. {images} images of each class.{chosen}",
        across="operation",
        down="class",
        rows=classes,
        columns=names,
        values=values,
        texts=[[_signed(value) for value in row] for row in values],
        details=[
            [
                f"class {label}, {name}: {value:+.2%} relative to the mean over classes, standard error {error:.2%}"
                for name, value, error in zip(names, *row, strict=True)
            ]
            for label, *row in zip(classes, values, errors, strict=True)
        ],
        strength=strength,
    )


def _pair_table(names: Sequence[str], **fields: Any) -> HeatTable:
    """A table with a row for each first operation and a column for each second one."""
    return HeatTable(across="second operation", down="first operation", rows=names, columns=names, **fields)


def _signed(value: float) -> str:
    if value >= 10:
        return f"{value + 1:.0f}x"
    return "0.0" if abs(value) < 0.0005 else f"{100 * value:+.1f}"


def _strength(relative: Numbers) -> tuple[Numbers, float]:
    """The values over the largest absolute one, and that one: policies differ by a hundredth or by a factor."""
    reach = max(float(np.abs(relative).max()), 1e-4)
    return relative / reach, reach
