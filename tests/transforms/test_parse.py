"""Transformations as text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mapolicy.errors import UsageError
from mapolicy.transforms.parse import parse_transformations, spelled
from mapolicy.transforms.space import DEFAULT_SPACE, OPERATION_NAMES, SPACES

HAS_MAGNITUDE = SPACES[DEFAULT_SPACE].has_magnitude


def test_what_a_user_types() -> None:
    found = parse_transformations(" rotate:5 , Color:-3;Equalize ; Solarize:10,Identity;")
    names = [
        (OPERATION_NAMES[first], OPERATION_NAMES[second])
        for first, second in zip(found.first.tolist(), found.second.tolist(), strict=True)
    ]
    assert names == [("Rotate", "Color"), ("Equalize", "Identity"), ("Solarize", "Identity")]
    assert found.magnitude1.tolist() == [5, 0, 10]
    assert found.magnitude2.tolist() == [-3, 0, 0]
    assert found.magnitude1.dtype == torch.float32


OPERATION = st.sampled_from(range(len(OPERATION_NAMES)))
LEVEL = st.integers(-100, 100).map(lambda tenths: tenths / 10)


@given(st.lists(st.tuples(OPERATION, LEVEL, OPERATION, LEVEL), min_size=1, max_size=5))
def test_what_is_written_is_read(pairs: list[tuple[int, float, int, float]]) -> None:
    text = "; ".join(
        ", ".join(f"{OPERATION_NAMES[at]}:{level}" if HAS_MAGNITUDE[at] else OPERATION_NAMES[at] for at, level in steps)
        for steps in (((a, b), (c, d)) for a, b, c, d in pairs)
    )
    found = parse_transformations(text)
    assert "; ".join(spelled(found)) == text
    assert torch.equal(found.first, torch.tensor([pair[0] for pair in pairs]))
    assert torch.equal(found.second, torch.tensor([pair[2] for pair in pairs]))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Rotat:5", "did you mean Rotate"),
        ("Invert:3", "no operation 'Invert'"),
        ("Equalize:3", "Equalize has no magnitude"),
        ("Rotate", "'Rotate' has no level of -10 to 10"),
        ("Rotate:10.5", "no level"),
        ("Rotate:nan", "no level"),
        ("Rotate:five", "no level"),
        ("Rotate:1,Color:1,Equalize", "more than two operations"),
        (" ; ", "there are 0"),
        ("Identity;" * 10_001, "there are 10001"),
    ],
)
def test_what_cannot_be_meant(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_transformations(text)
