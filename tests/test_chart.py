"""The picture of a comparison: every mark where its number says, in both formats."""

import io
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mapolicy.chart import BETTER, FORMS, INK, SHARPNESS, WORSE, Dot, Drawing, Label, Line, _axis, chart, layout
from mapolicy.summary import Row, Summary, summarise

GAINS = {"learned": (2.0, 2.4, 2.2), "sampler-only": (-1.0, -1.2, -1.1), "weights-only": (-3.0, 4.0, 0.5)}


def summary(gains=GAINS, archs=("a<b",)) -> list[Summary]:
    rows = []
    for arch in archs:
        for policy, values in {**gains, "uniform": (0.0, 0.0, 0.0)}.items():
            for seed, value in enumerate(values):
                rows.append(Row(arch, policy, None, seed, "bundle", 3, 70 + value, 90, 1000, 1.0, 1.0))
    return summarise(rows)


def scale(drawing: Drawing) -> tuple[float, float]:
    """Pixels of 0 and of one point, from the axis as a reader would take it."""
    ticks = {float(s.text): s.at[0] for s in drawing.shapes if isinstance(s, Label) and s.anchor == "m"}
    assert len(ticks) > 3
    unit = (max(ticks.values()) - min(ticks.values())) / (max(ticks) - min(ticks))
    for value, x in ticks.items():
        assert x == pytest.approx(ticks[0.0] + value * unit)
    return ticks[0.0], unit


def test_dots_and_intervals_are_where_the_axis_says() -> None:
    drawing = layout(summary())
    zero, unit = scale(drawing)
    expected = [entry.versus_rival for entry in summary() if entry.versus_rival]
    dots = [shape for shape in drawing.shapes if isinstance(shape, Dot)]
    bars = [shape for shape in drawing.shapes if isinstance(shape, Line) and shape.width == 2]
    assert len(dots) == len(bars) == len(expected) == 3
    for dot, bar, difference in zip(dots, bars, expected, strict=True):
        assert (dot.middle[0] - zero) / unit == pytest.approx(difference.mean)
        ends = tuple((point[0] - zero) / unit for point in (bar.start, bar.end))
        assert ends == pytest.approx(difference.interval)
        assert dot.middle[1] == bar.start[1] == bar.end[1]
    assert [dot.colour for dot in dots] == [BETTER, WORSE, INK], "coloured where the interval leaves out 0"
    texts = [shape.text for shape in drawing.shapes if isinstance(shape, Label)]
    assert "a<b, against uniform" in texts
    assert texts.count("learned") == 1
    assert any(text.startswith("+2.20 ± 0.50 (n = 3)") for text in texts)
    assert all(0 <= shape.at[0] <= drawing.width and shape.at[1] < drawing.height for shape in drawing.shapes
               if isinstance(shape, Label))  # fmt: skip


def test_one_unit_has_a_dot_and_claims_nothing() -> None:
    drawing = layout(summary({"learned": (5.0,)}))
    assert [shape.colour for shape in drawing.shapes if isinstance(shape, Dot)] == [INK]
    assert not [shape for shape in drawing.shapes if isinstance(shape, Line) and shape.width == 2]


def test_both_formats_draw_the_same() -> None:
    entries = summary(archs=("a<b", "c"))
    drawing = layout(entries)
    root = ElementTree.fromstring(chart(entries, "svg"))
    tags = [element.tag.rpartition("}")[2] for element in root]
    for tag, kind in (("line", Line), ("circle", Dot), ("text", Label)):
        assert tags.count(tag) == sum(isinstance(shape, kind) for shape in drawing.shapes) > 0
    assert "a<b, against uniform" in [element.text for element in root]
    picture = Image.open(io.BytesIO(chart(entries, "png")))
    assert picture.size == (drawing.width * SHARPNESS, drawing.height * SHARPNESS)
    for shape in drawing.shapes:
        if isinstance(shape, Dot):
            x, y = (round(value * SHARPNESS) for value in shape.middle)
            assert picture.getpixel((x, y)) == tuple(bytes.fromhex(shape.colour[1:]))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_show_is_an_empty_picture(form: str) -> None:
    assert len(chart([], form)) > 100


@given(st.lists(st.floats(-150, 150), max_size=6))
def test_the_axis_is_round_and_holds_everything(values: list[float]) -> None:
    low, high, step = _axis(values)
    assert low <= min([0, *values])
    assert high >= max([0, *values]) - 1e-9
    assert high > low
    assert round((high - low) / step) <= 10
    assert low / step == pytest.approx(round(low / step), abs=1e-6)
    assert float(f"{step:.0e}") == pytest.approx(step)
