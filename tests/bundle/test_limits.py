"""Limits: how they are given, and that each refusal names the one that lets the same bundle through."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mapolicy.bundle.format import read_bundle
from mapolicy.bundle.limits import Limits
from mapolicy.errors import InputError, UsageError
from mapolicy.policy.policy_bundle import PolicyBundle
from tests.helpers.bundle_factory import forge


def test_limits_are_given_by_name() -> None:
    assert Limits.of([]) == Limits()
    assert Limits.of(["tensors=20", "file_bytes=4000000000"]) == Limits(tensors=20, file_bytes=4_000_000_000)


@pytest.mark.parametrize(
    "text",
    ["tensors", "tensors=", "tensors=0", "tensors=-1", "tensors=1e3", "tensors=٣", "depth=9", "=3", "x=" + "9" * 99],
)
def test_what_is_no_limit_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="limit"):
        Limits.of([text])


@pytest.mark.parametrize("value", [0, -5, 1.5, True, "9"])
def test_limits_are_whole_numbers(value: object) -> None:
    with pytest.raises(UsageError, match="limit tensors"):
        Limits(tensors=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["file_bytes", "header_bytes", "tensors", "pixels"])
def test_a_refusal_names_the_limit_that_lets_it_through(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_bytes(forge())
    with pytest.raises(InputError) as problem:
        read_bundle(path, limits=Limits(**{name: 8}))
    (option,) = re.findall(r"--limit (\S+)", str(problem.value))
    assert option.startswith(f"{name}=")
    assert read_bundle(path, limits=Limits.of([option]))[0] == read_bundle(path)[0]


def test_the_limit_of_parameters_and_what_a_loaded_bundle_writes(bundle_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 7\d{4} parameters, more than") as problem:
        PolicyBundle.load(str(bundle_file), limits=Limits(parameters=77_000))
    (option,) = re.findall(r"--limit (\S+)", str(problem.value))
    # Written under the limits that it was read with: a bundle over the default ones can be saved again.
    tight = Limits.of([option, f"tensors={len(PolicyBundle.load(bundle_file).tensors)}"])
    bundle = PolicyBundle.load(bundle_file, limits=tight)
    bundle.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == bundle_file.read_bytes()
    with pytest.raises(InputError, match=r"bundle to be written: header has .* --limit tensors="):
        replace(bundle, limits=Limits(tensors=9)).to_bytes()
