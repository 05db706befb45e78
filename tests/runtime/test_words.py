"""Numbers in sentences: one of a thing, none of it, several."""

import pytest

from mapolicy.runtime.words import plural, plural_are


@pytest.mark.parametrize(
    ("count", "noun", "sentence"),
    [(1, "1 image", "1 image is"), (0, "0 images", "0 images are"), (12, "12 images", "12 images are")],
)
def test_the_noun_and_the_verb_follow_the_number(count: int, noun: str, sentence: str) -> None:
    assert (plural(count, "image"), plural_are(count, "image")) == (noun, sentence)
