"""A chart of a comparison: each policy's paired difference to the best baseline with its interval. PNG or SVG."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from ..report.figures import FIRST, INK, PALE, SECOND, rendered, style
from .stats import LEVEL, Difference, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = ("png", "svg")
WIDTH, ROW, MARGIN = 8.0, 0.3, 0.7  # inches: the chart's width, a policy's height, a network's title and axis
BETTER, WORSE = FIRST, SECOND


def chart(summary: Sequence[Summary], form: str) -> bytes:
    """Draw a comparison.

    Args:
        summary: entries without a difference to the best baseline are left out, the best baseline among them.
        form: one of `FORMS`.

    Returns:
        The bytes of the PNG or SVG file.
    """
    return rendered(figure_of(summary))[form]


def figure_of(summary: Sequence[Summary]) -> "Figure":
    """A block for each network and a row for each policy, in the summary's order; right of 0 is better."""
    entries = [(entry, entry.versus_rival) for entry in summary if entry.versus_rival is not None]
    blocks = [list(block) for _, block in groupby(entries, key=lambda pair: pair[0].arch)]
    with style():
        from matplotlib.figure import Figure

        heights = [ROW * len(block) + MARGIN for block in blocks]
        figure = Figure(figsize=(WIDTH, MARGIN + sum(heights)), layout="constrained")
        figure.suptitle(
            f"Test top-1, paired difference to the best policy without a search: points, {LEVEL:.0%} interval",
            fontsize=9,
        )
        if not blocks:
            return figure
        every = figure.subplots(len(blocks), 1, sharex=True, squeeze=False, height_ratios=heights).flatten()
        for axes, block in zip(every, blocks, strict=True):
            axes.axvline(0, color=PALE)
            for row, (_, difference) in enumerate(block):
                colour = _colour(difference)
                axes.errorbar(difference.mean, row, xerr=difference.half_width, fmt="o", markersize=5, color=colour)
                axes.annotate(
                    _difference_text(difference),
                    (1.01, row),
                    xycoords=axes.get_yaxis_transform(),
                    va="center",
                    color=colour,
                )
            axes.set_yticks(range(len(block)), [_name(entry) for entry, _ in block])
            axes.set_ylim(len(block) - 0.5, -0.5)
            axes.set_title(f"{block[0][0].arch}, against {block[0][1].against}", loc="left")
        return figure


def _colour(difference: Difference) -> str:
    if difference.interval is None or difference.interval[0] <= 0 <= difference.interval[1]:
        return INK
    return BETTER if difference.mean > 0 else WORSE


def _name(entry: Summary) -> str:
    return entry.policy if entry.mode in (None, "frozen") else f"{entry.policy}, {entry.mode}"


def _difference_text(difference: Difference) -> str:
    interval = "" if difference.half_width is None else f" ± {difference.half_width:.2f}"
    return f"{difference.mean:+.2f}{interval} (n = {difference.n})"
