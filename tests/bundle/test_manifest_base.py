"""What both kinds of bundle share: how a manifest is read, and what is said of a wrong one."""

from typing import Annotated

import pytest
from pydantic import Field, Strict, ValidationError

from mapolicy.bundle.manifest_base import (
    DATASET_LEVEL,
    MAX_ENTRIES,
    Draft,
    ManifestPart,
    check_digest,
    check_format,
    check_spelling,
    first_problem,
    read_json,
)
from mapolicy.errors import InputError


class Inner(ManifestPart):
    size: Annotated[int, Field(ge=1)]
    names: Annotated[tuple[str, ...], Field(max_length=2), Strict(False)] = ()
    text: Annotated[str, Field(min_length=1, max_length=3)] = "x"


class Sealed(Draft):
    inner: Inner
    digest: str


def problem_of(**fields) -> str:
    with pytest.raises(ValidationError) as problem:
        Sealed.model_validate(fields)
    return first_problem(problem.value)


def test_the_first_problem_names_field_found_and_expected() -> None:
    assert problem_of(inner={"size": 0}, digest="") == (
        "manifest inner.size: found 0, expected greater than or equal to 1"
    )
    assert problem_of(inner={"size": True}, digest="") == "manifest inner.size: found True, expected a valid integer"
    for field, value, says in (
        ("names", ["a"] * 3, "found a list of 3, expected at most 2"),
        ("text", "abcd", "found 'abcd' of 4 characters, expected at most 3"),
        ("text", "", "found '' of 0 characters, expected at least 1"),
    ):
        assert problem_of(inner={"size": 1, field: value}, digest="") == f"manifest inner.{field}: {says}"
    assert problem_of(inner={}, digest="") == "manifest inner.size is missing"
    assert problem_of(inner={"size": 1, "x": 1}, digest="") == "manifest inner.x is not a field of this format"
    assert problem_of(inner={"size": 1, "\x1b": 1}, digest="") == "manifest inner.\\x1b is not a field of this format"


def test_the_digest_is_not_part_of_what_it_is_taken_over() -> None:
    sealed = Sealed(inner=Inner(size=1), digest="d")
    assert sealed.content() == '{"inner":{"names":[],"size":1,"text":"x"}}'
    assert sealed.to_json() == '{"digest":"d","inner":{"names":[],"size":1,"text":"x"}}'
    check_spelling(sealed.to_json(), sealed, "x")
    with pytest.raises(InputError, match="not spelled as mapolicy writes it"):
        check_spelling(sealed.to_json().replace(":", ": ", 1), sealed, "x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "manifest is a list of 0, expected a JSON object"),
        ("1", "manifest is 1, expected a JSON object"),
        ("{", "manifest is not JSON"),
        ('{"a":1,"a":1}', "manifest has the key 'a' twice"),
        ('{"a":NaN}', "manifest has the number NaN"),
        (f'{{"a":[{",".join(["[]"] * MAX_ENTRIES)}]}}', "more than the 1000 allowed"),
        (f'{{"{DATASET_LEVEL}":[{",".join(["[]"] * 200_000)}]}}', "more than the 168136 allowed"),
    ],
)
def test_what_no_manifest_may_be(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_json(text, "x")


def test_a_dataset_level_policy_may_have_more_lists() -> None:
    lists = ",".join(["[]"] * MAX_ENTRIES)
    assert len(read_json(f'{{"kind":"{DATASET_LEVEL}","a":[{lists}]}}', "x")["a"]) == MAX_ENTRIES


def test_formats_and_digests() -> None:
    check_format({"format": 1}, "x")
    for format in (2, True, 1.0, "1", None):
        with pytest.raises(InputError, match=r"is a bundle of format .*; this mapolicy reads format 1; upgrade"):
            check_format({"format": format}, "x")
    digest = "ab" * 32
    check_digest(digest, digest, None, "x")
    check_digest(digest, digest, digest.upper(), "x")
    with pytest.raises(InputError, match=r"its digest says cd.*, its content has ab.*: it was damaged or edited"):
        check_digest(digest, "cd" * 32, digest, "x")
    with pytest.raises(InputError, match=r"has the digest abab.*\.\.\., expected .*cd.*; it is another bundle"):
        check_digest(digest, digest, "cd" * 32, "x")
