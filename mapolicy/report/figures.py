"""Charts, heat maps and rows of images, drawn by matplotlib: as SVG in a page's colours, and as PNG and SVG files.

Foreign text is drawn as plain text. The same data and the same matplotlib give the same bytes. matplotlib is imported
late.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.sanitize import printable
from .metrics import Curve
from .tables import HeatTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PALE, FIRST, SECOND = "#1d1d1f", "#b9bcc4", "#2166ac", "#b2182b"
# Their replacements on a page, where the reader's theme decides.
_ON_A_PAGE = {INK: "currentColor", PALE: "var(--line)", FIRST: "var(--series-1)", SECOND: "var(--series-2)"}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, which can be searched and read aloud
    "svg.hashsalt": "mapolicy",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "axes.formatter.useoffset": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": PALE,
    "grid.alpha": 0.4,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 160,
}
PANEL, SMALL_PANEL = (3.6, 2.3), (1.75, 1.4)  # inches
TILES_IN_A_ROW = 13
LONGEST_NAME, LONGEST_CAPTION = 28, 20  # characters of a row's name and of a caption's line
CHARACTERS_PER_INCH = 12  # where titles are wrapped

Pixels = NDArray[np.uint8]
Draw = Callable[["Axes"], None]

CURVES: Mapping[str, tuple[Sequence[str], str]] = {
    "losses": (("loss", "validation_loss"), "cross entropy"),
    "meta-validation accuracy": (("validation_top1", "validation_top5"), "per cent"),
    "alpha, step size of the virtual step": (("alpha",), "alpha"),
    "entropy of p_jk": (("entropy",), "share of uniform's"),
    "spread of the weights": (("weight_spread",), "deviation over mean"),
    "signal to noise of the hypergradient": (("signal_to_noise",), "ratio"),
}
LABELS = {
    "loss": "training, weighted",
    "validation_loss": "meta-validation",
    "validation_top1": "top-1",
    "validation_top5": "top-5",
}


@contextmanager
def style() -> Iterator[None]:
    """Within it matplotlib has the settings of all our charts."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # The font may lack the characters of a class name; a viewer of the SVG may have another font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def panels(name: str, draws: Sequence[Draw], size: tuple[float, float] = PANEL) -> list[str]:
    """Each chart as inline SVG, in the page's size and colours, and hidden from screen readers, which have the tables.

    Args:
        name: start of all ids within these charts.
        draws: the charts.
        size: width and height of a chart in inches.
    """
    return [_inline(_figure([draw], 1, size), f"{name}-{number}") for number, draw in enumerate(draws)]


def files(draws: Sequence[Draw], columns: int, size: tuple[float, float] = PANEL) -> dict[str, bytes]:
    """All charts in one figure, as `png` and `svg`.

    Args:
        draws: the charts.
        columns: charts in a row.
        size: width and height of a chart in inches.
    """
    return rendered(_figure(draws, columns, size))


def as_png(figure: "Figure") -> bytes:
    """A figure on a white background."""
    return _saved(figure, "png", transparent=False)


def rendered(figure: "Figure") -> dict[str, bytes]:
    """A figure on a white background, as `png` and `svg`."""
    return {form: _saved(figure, form, transparent=False) for form in ("png", "svg")}


def curve_draws(curves: Mapping[str, Curve]) -> dict[str, Draw]:
    """A chart for each group of `CURVES` that was logged, by title."""

    def draw(title: str, names: Sequence[str], unit: str) -> Draw:
        def on(axes: "Axes") -> None:
            for name, colour, line in zip(names, (FIRST, SECOND), ("-", "--"), strict=False):
                points = curves.get(name, [])
                marker = "o" if 0 < len(points) < 3 else None
                if points:
                    label = LABELS.get(name, name)
                    axes.plot(*zip(*points, strict=True), color=colour, linestyle=line, marker=marker, label=label)
            axes.set(title=title, xlabel="epoch", ylabel=unit)
            if sum(name in curves for name in names) > 1:
                axes.legend()

        return on

    # A curve of zeros is that of something that the run does not have: weights that are all equal.
    moving = {name for name, points in curves.items() if any(value != 0 for _, value in points)}
    kinds = {title: kind for title, kind in CURVES.items() if moving & set(kind[0])}
    return {title: draw(title, names, unit) for title, (names, unit) in kinds.items()}


def response_draws(
    names: Sequence[str], levels: Sequence[float], low: Any, median: Any, high: Any, moves: Sequence[bool]
) -> list[Draw]:
    """Weight against magnitude for each operation, all on one scale.

    Args:
        names, levels, low, median, high: as in `MagnitudeResponse`.
        moves: whether each operation has a magnitude.
    """
    bottom, top = float(np.min(low)), float(np.max(high))
    room = 0.05 * max(top - bottom, 0.02)

    def draw(row: int) -> Draw:
        def on(axes: "Axes") -> None:
            axes.axhline(1, color=PALE, linewidth=1)
            axes.fill_between(levels, low[row], high[row], color=FIRST, alpha=0.25, linewidth=0)
            axes.plot(levels, median[row], color=FIRST, linestyle="-" if moves[row] else ":")
            axes.set(ylim=(bottom - room, top + room), xlim=(0, 10), xticks=(0, 5, 10))
            axes.set_title(names[row], fontsize=8)
            axes.tick_params(labelsize=7)

        return on

    return [draw(row) for row in range(len(names))]


def loss_draw(losses: Any, weights: Any) -> Draw:
    """Weight against loss, a dot for each sample; both arrays [n]."""

    def on(axes: "Axes") -> None:
        axes.scatter(losses, weights, s=7, color=FIRST, alpha=0.5, linewidths=0)
        axes.axhline(1, color=PALE, linewidth=1)
        axes.set(xlabel="loss of the bundle's network", ylabel="weight, mean 1")

    return on


def share_draw(names: Sequence[str], shares: Sequence[float]) -> Draw:
    """A bar for each operation: the share of images that it is applied to."""

    def on(axes: "Axes") -> None:
        axes.barh(range(len(names)), [100 * share for share in shares], color=FIRST)
        axes.set(xlabel="per cent of the images", yticks=range(len(names)), yticklabels=list(names))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")

    return on


def heat_figure(table: HeatTable) -> "Figure":
    """Draw a heat map."""
    with style():
        from matplotlib.figure import Figure

        rows, columns = table.values.shape
        figure = Figure(figsize=(2.2 + 0.52 * columns, 1.8 + 0.3 * rows), layout="constrained")
        axes = figure.subplots()
        axes.imshow(table.strength, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        for row in range(rows):
            for column in range(columns):
                colour = "white" if abs(table.strength[row, column]) > 0.6 else INK
                text = table.texts[row][column]
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour, in_layout=False)
        axes.set_xticks(range(columns), [_short(name) for name in table.columns], rotation=45, ha="right")
        axes.set_yticks(range(rows), [_short(name) for name in table.rows])
        axes.set(xlabel=table.across, ylabel=table.down)
        room = int(figure.get_figwidth() * CHARACTERS_PER_INCH)
        lines = [line for text in (table.title, table.scale) for line in textwrap.wrap(text, room)]
        axes.set_title("\n".join(lines), loc="left")
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0)
        return figure


def tile_figure(rows: Sequence[tuple[str, Sequence[tuple[Pixels, str]]]]) -> "Figure":
    """Draw rows of images with captions; a row of more than `TILES_IN_A_ROW` continues below.

    Args:
        rows: title of each row, and its images uint8 [C, H, W] with their captions.
    """
    rows = [
        (title if start == 0 else "", tiles[start : start + TILES_IN_A_ROW])
        for title, tiles in rows
        for start in range(0, len(tiles), TILES_IN_A_ROW)
    ]
    with style():
        from matplotlib.figure import Figure

        columns = max(len(tiles) for _, tiles in rows)
        lines = max(caption.count("\n") + 1 for _, tiles in rows for _, caption in tiles)
        side, below = 1.1, 0.11 * lines + 0.3  # inches: an image, and the caption under it
        width, height = (side + 0.1) * columns, (side + below) * len(rows)
        figure = Figure(figsize=(width, height + 0.1))
        grid = figure.subplots(len(rows), columns, squeeze=False)
        edges = {"left": 0.01, "right": 0.99, "bottom": (below - 0.2) / height, "top": 1 - 0.3 / height}
        figure.subplots_adjust(**edges, wspace=0.1, hspace=below / side)
        for axes_row, (title, tiles) in zip(grid, rows, strict=True):
            for axes in axes_row:
                axes.axis("off")
            for axes, (pixels, caption) in zip(axes_row, tiles, strict=False):
                axes.imshow(np.moveaxis(np.repeat(pixels, 3 // len(pixels), 0), 0, 2), interpolation="nearest")
                axes.text(0.5, -0.05, shown_lines(caption), ha="center", va="top", fontsize=6, transform=axes.transAxes)
            if title:
                axes_row[0].set_title(_short(title, 80), loc="left", fontsize=8)
        return figure


def shown_lines(text: str) -> str:
    """The lines with unprintable characters replaced, each at most `LONGEST_CAPTION` long."""
    return "\n".join(_short(line, LONGEST_CAPTION) for line in text.split("\n"))


def _figure(draws: Sequence[Draw], columns: int, size: tuple[float, float]) -> "Figure":
    with style():
        from matplotlib.figure import Figure

        rows = -(-len(draws) // columns)
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for each, draw in zip(axes, draws, strict=False):
            draw(each)
        for each in axes[len(draws) :]:
            each.axis("off")
        return figure


def _saved(figure: "Figure", form: str, transparent: bool) -> bytes:
    with style():
        content = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(content, format=form, metadata=metadata, transparent=transparent)
        return content.getvalue()


def _inline(figure: "Figure", name: str) -> str:
    text = _saved(figure, "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    assert view is not None
    rest = re.sub(r"<(metadata|style).*?</\1>", "", rest, flags=re.S)  # its style would apply to the whole page
    # Ids must be unique on the page: those of groups are removed, those with references get the chart's name.
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    rest = re.sub(r'((?: id="|xlink:href="#|url\(#))(?=[mp][0-9a-f]{10})', rf"\g<1>{name}-", rest)
    rest = re.sub(r"font-family: [^;\"]*;", "", rest)
    for colour, variable in _ON_A_PAGE.items():
        rest = rest.replace(colour, variable)
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} {view[0]} stroke-linejoin="round" aria-hidden="true" focusable="false">{rest}'


def _short(text: str, longest: int = LONGEST_NAME) -> str:
    text = printable(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
