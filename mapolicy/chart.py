"""A comparison as a picture: each policy's paired difference to the best rival, with its interval. PNG or SVG."""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

from .summary import LEVEL, Difference, Summary

SIZE, ROW, GAP, PLOT, DOT = 14, 26, 12, 480, 4  # font, distances, width of the plot, radius: pixels
SHARPNESS = 2  # pixels of the PNG for one of the drawing
TICKS = 8  # about so many
INK, PALE, BETTER, WORSE = "#222222", "#cccccc", "#2166ac", "#b2182b"


@dataclass(frozen=True)
class Line:
    """From one point to another."""

    start: tuple[float, float]
    end: tuple[float, float]
    colour: str
    width: int = 1


@dataclass(frozen=True)
class Dot:
    """A disc."""

    middle: tuple[float, float]
    colour: str


@dataclass(frozen=True)
class Label:
    """A line of text whose middle height is at y; x is its left end, middle or right end: l, m, r."""

    at: tuple[float, float]
    text: str
    anchor: str
    colour: str = INK


@dataclass(frozen=True)
class Drawing:
    """What both formats draw, and on how many pixels."""

    width: int
    height: int
    shapes: Sequence[Line | Dot | Label]


def chart(summary: Sequence[Summary], form: str) -> bytes:
    """The picture of a comparison.

    Args:
        summary: entries without a difference to a rival are left out, the rival itself among them.
        form: a key of `FORMS`.
    """
    return FORMS[form](layout(summary))


def layout(summary: Sequence[Summary]) -> Drawing:
    """Where everything goes: a block for each network, a row for each policy, points to the right of 0 are better."""
    shown = [(entry, entry.versus_rival) for entry in summary if entry.versus_rival is not None]
    font = ImageFont.load_default(SIZE)
    names, figures = [_name(entry) for entry, _ in shown], [_figure(difference) for _, difference in shown]
    left = round(max(map(font.getlength, [*names, ""]))) + 3 * GAP
    low, high, step = _axis([end for _, difference in shown for end in _ends(difference)])

    def across(value: float) -> float:
        return left + PLOT * (value - low) / (high - low)

    ticks = [low + number * step for number in range(round((high - low) / step) + 1)]
    y = float(ROW)
    heading = f"Test top-1, paired difference to the best policy without a search: points, {100 * LEVEL:.0f} % interval"
    shapes: list[Line | Dot | Label] = [Label((GAP, y), heading, "l")]
    for arch, group in groupby(zip(shown, names, figures, strict=True), key=lambda row: row[0][0].arch):
        y += ROW
        block = list(group)
        shapes.append(Label((GAP, y), f"{arch}, against {block[0][0][1].against}", "l"))
        top, bottom = y + ROW / 2, y + ROW * (len(block) + 0.5)
        shapes += [Line((across(at), top), (across(at), bottom), INK if _zero(at, step) else PALE) for at in ticks]
        for (_, difference), name, figure in block:
            y += ROW
            start, end = _ends(difference)
            sure = difference.half_width is not None
            colour = BETTER if sure and start > 0 else WORSE if sure and end < 0 else INK
            if sure:
                shapes.append(Line((across(start), y), (across(end), y), colour, 2))
            shapes.append(Dot((across(difference.mean), y), colour))
            shapes.append(Label((left - GAP, y), name, "r"))
            shapes.append(Label((left + PLOT + GAP, y), figure, "l", colour))
    y += ROW
    shapes += [Label((across(at), y), "0" if _zero(at, step) else f"{at:+.6g}", "m") for at in ticks]
    right = left + PLOT + 2 * GAP + round(max(map(font.getlength, [*figures, ""])))
    width = max(right, 2 * GAP + round(font.getlength(heading)))
    return Drawing(width, round(y + ROW), shapes)


def _zero(tick: float, step: float) -> bool:
    return abs(tick) < step / 2


def _name(entry: Summary) -> str:
    return entry.policy if entry.mode in (None, "frozen") else f"{entry.policy}, {entry.mode}"


def _figure(difference: Difference) -> str:
    sure = "" if difference.half_width is None else f" ± {difference.half_width:.2f}"
    return f"{difference.mean:+.2f}{sure} (n = {difference.n})"


def _ends(difference: Difference) -> tuple[float, float]:
    return difference.interval or (difference.mean, difference.mean)


def _axis(values: Sequence[float]) -> tuple[float, float, float]:
    """Both ends and the distance of the ticks, which are round numbers; 0 is among them."""
    low, high = min([0.0, *values]), max([0.0, *values])
    rough = max(high - low, 1e-9) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return math.floor(low / step) * step, max(math.ceil(high / step), math.floor(low / step) + 1) * step, step


def _png(drawing: Drawing) -> bytes:
    def scaled(point: tuple[float, float]) -> tuple[float, float]:
        return point[0] * SHARPNESS, point[1] * SHARPNESS

    picture = Image.new("RGB", (drawing.width * SHARPNESS, drawing.height * SHARPNESS), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(SIZE * SHARPNESS)
    for shape in drawing.shapes:
        match shape:
            case Line():
                draw.line((*scaled(shape.start), *scaled(shape.end)), shape.colour, shape.width * SHARPNESS)
            case Dot():
                draw.circle(scaled(shape.middle), DOT * SHARPNESS, shape.colour)
            case Label():
                draw.text(scaled(shape.at), shape.text, shape.colour, font, anchor=f"{shape.anchor}m")
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def _svg(drawing: Drawing) -> bytes:
    anchors = {"l": "start", "m": "middle", "r": "end"}

    def lines() -> Iterator[str]:
        size = f'width="{drawing.width}" height="{drawing.height}"'
        font = f'font-family="sans-serif" font-size="{SIZE}"'
        yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>'
        yield '<rect width="100%" height="100%" fill="white"/>'
        for shape in drawing.shapes:
            match shape:
                case Line((x1, y1), (x2, y2), colour, width):
                    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
                    yield f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'
                case Dot((x, y), colour):
                    yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{DOT}" fill="{colour}"/>'
                case Label((x, y), text, anchor, colour):
                    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchors[anchor]}" dominant-baseline="central"'
                    yield f'<text {place} fill="{colour}">{escape(text)}</text>'
        yield "</svg>"

    return ("\n".join(lines()) + "\n").encode()


FORMS: Mapping[str, Callable[[Drawing], bytes]] = {"png": _png, "svg": _svg}
