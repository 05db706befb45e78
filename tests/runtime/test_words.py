"""Numbers in sentences: one of a thing, none of it, several."""

import pytest

from mapolicy.runtime.words import plural, plural_are, size_in_words


@pytest.mark.parametrize(
    ("count", "noun", "sentence"),
    [(1, "1 image", "1 image is"), (0, "0 images", "0 images are"), (12, "12 images", "12 images are")],
)
def test_the_noun_and_the_verb_follow_the_number(count: int, noun: str, sentence: str) -> None:
    assert (plural(count, "image"), plural_are(count, "image")) == (noun, sentence)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (352_256, "344 KiB"),
        (6 * 2**20, "6 MiB"),
        (6_012_954_214, "5.6 GiB"),
        (800 * 2**30, "800 GiB"),
    ],
)
def test_sizes_have_a_fitting_unit(count: int, text: str) -> None:
    assert size_in_words(count) == text
