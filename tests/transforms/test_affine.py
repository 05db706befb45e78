"""Positions against Pillow's fixed point in Python's integers; the operations meet Pillow in test_operations.py."""

import math

import numpy as np
import pytest

from mapolicy.transforms.affine import coordinates, row_starts

SIDES = [(1, 1), (5, 8), (3, 16_380), (16_380, 3), (8_191, 8_192)]


def fixed(number: float) -> int:
    """Geometry.c: FIX."""
    return math.floor(number * 65536 + 0.5)


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_terms_add_up_to_pillows_positions(height: int, width: int) -> None:
    """Image.rotate's matrix and affine_fixed's sum; 32 bits hold every sum inside the space `wide`."""
    angles, shears = [0.0, 30.0, -30.0, 90.0, 135.0, -180.0], [0.0, 0.99, -0.99, 0.3, 40.0, -1e6]
    terms = coordinates([len(angles), len(shears)], np.array(angles + shears), height, width).astype(np.int64)
    rows, columns = (np.unique(np.linspace(0, side - 1, 9).astype(int)) for side in (height, width))
    for number, angle in enumerate(angles):
        turn = -math.radians(angle)
        matrix = [math.cos(turn), math.sin(turn), 0.0, -math.sin(turn), math.cos(turn), 0.0]
        for axis, side in ((0, width), (1, height)):
            across, down = matrix[3 * axis : 3 * axis + 2]
            shift = across * -width / 2 + down * -height / 2 + side / 2
            first = fixed(shift + across * 0.5 + down * 0.5)
            for y in rows:
                for x in columns:
                    total = terms[number, axis, y] + terms[number, axis, height + x]
                    assert abs(total) < 2**31
                    assert total - 65536 == first + fixed(down) * y + fixed(across) * x
    for number, shear in enumerate(shears, len(angles)):
        for x in columns:
            shift = min(max((fixed(0.5 + 0.5 * shear) + fixed(shear) * int(x)) >> 16, -height), height)
            for y in rows:
                x_and_y = (terms[number, :, y] + terms[number, :, height + x]) >> 16
                assert x_and_y.tolist() == [x + 1, y + shift + 1]
                assert np.abs(terms[number, :, y] + terms[number, :, height + x]).max() < 2**31


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_rows_begin_inside_their_channel(height: int, width: int) -> None:
    """A channel is 2H + 1 rows, of which the odd ones are the image's; a window on it has the image's width."""
    value = np.array([0.0, 0.99, -0.99, 5.0, 0.0, 1.0, -1.0, 3.0, 0.0, 0.4, -0.4, 1.0, -1.0, -7.0])
    start = row_starts([4, 4, 6], value, height, width)
    assert start.min() >= 0
    assert start.max() <= 2 * height * width
    own = (2 * np.arange(height) + 1) * width
    for row in (0, 4, 8):
        assert (start[row] == own).all()
    assert (start[5] == own + width).all()
    assert (start[6] == own - width).all()
    for row in (11, 12, 13):
        # All rows come from outside: from padding alone.
        assert (start[row] % (2 * width) == 0).all()
