"""The chart of a comparison: every mark is at its value, in both formats."""

import io
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image

from mapolicy.compare.plot import BETTER, FORMS, INK, WORSE, chart, figure_of
from mapolicy.compare.stats import Row, Summary, summarise

GAINS = {"learned": (2.0, 2.4, 2.2), "sampler-only": (-1.0, -1.2, -1.1), "weights-only": (-3.0, 4.0, 0.5)}


def summary(gains=GAINS, archs=("a<b",)) -> list[Summary]:
    rows = []
    for arch in archs:
        for policy, values in {**gains, "uniform": (0.0, 0.0, 0.0)}.items():
            for seed, value in enumerate(values):
                rows.append(Row(arch, policy, None, seed, "bundle", 3, 70 + value, 90, 1000, 1.0, 1.0))
    return summarise(rows)


def marks(axes: Axes) -> list[tuple[float, float, tuple[float, ...] | None, str]]:
    """Of each error bar: its dot's place, the ends of its interval, its colour."""
    found = []
    for container in axes.containers:
        dot, _, bars = container.lines
        (x,), (y,) = dot.get_data()
        ends = tuple(sorted(point[0] for point in bars[0].get_segments()[0])) if bars else None
        found.append((float(x), float(y), ends, to_hex(dot.get_color())))
    return found


def test_dots_and_intervals_are_where_their_numbers_say() -> None:
    (axes,) = figure_of(summary()).axes
    expected = [entry.versus_rival for entry in summary() if entry.versus_rival]
    found = marks(axes)
    assert len(found) == len(expected) == 3
    for row, ((x, y, ends, _), difference) in enumerate(zip(found, expected, strict=True)):
        assert x == pytest.approx(difference.mean)
        assert y == row
        assert ends == pytest.approx(difference.interval)
    assert [colour for *_, colour in found] == [BETTER, WORSE, INK], "coloured where the interval leaves out 0"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["learned", "sampler-only", "weights-only"]
    low, high = axes.get_ylim()
    assert low > high, "the first one is on top"
    assert axes.get_title(loc="left") == "a<b, against uniform"
    assert axes.texts[0].get_text() == "+2.20 ± 0.50 (n = 3)"


def test_one_unit_has_a_dot_and_claims_nothing() -> None:
    (axes,) = figure_of(summary({"learned": (5.0,)})).axes
    ((x, _, ends, colour),) = marks(axes)
    assert (x, ends, colour) == (5.0, None, INK)


def test_networks_have_blocks_of_their_own_on_one_scale() -> None:
    first, second = figure_of(summary(archs=("a<b", "c"))).axes
    assert first.get_xlim() == second.get_xlim()
    assert second.get_title(loc="left") == "c, against uniform"


def test_both_formats_hold_what_was_drawn() -> None:
    entries = summary(archs=("a<b", "c"))
    texts = {element.text for element in ElementTree.fromstring(chart(entries, "svg")).iter() if element.text}
    assert {"a<b, against uniform", "c, against uniform", "weights-only", "+2.20 ± 0.50 (n = 3)"} <= texts
    picture = Image.open(io.BytesIO(chart(entries, "png"))).convert("RGB")
    colours = {colour for _, colour in picture.getcolors(2**24) or ()}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (BETTER, WORSE, INK)} <= colours
    assert chart(entries, "png") == chart(entries, "png")


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_show_is_an_empty_picture(form: str) -> None:
    assert len(chart([], form)) > 100
