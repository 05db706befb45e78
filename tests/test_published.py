"""Dataset-level policies: round trip, and files that are refused."""

import hashlib
import json
from pathlib import Path

import pytest
from bundle_factory import DELETE, container, raw, spelled

from mapolicy.bundle_format import read_bundle
from mapolicy.errors import InputError, UsageError
from mapolicy.hub import Fetched
from mapolicy.limits import Limits
from mapolicy.opening import parse_any
from mapolicy.published import LIMITS, DatasetPolicy, has_magnitude
from mapolicy.sealed import MAX_STEPS, MAX_SUB_POLICIES
from mapolicy.space import OPERATION_NAMES

ROTATE = {"operation": "Rotate", "probability": 0.5, "value": 30.0, "mirrored": True}
EQUALIZE = {"operation": "Equalize", "probability": 1.0, "value": 0.0, "mirrored": False}
PARTS = {
    "versions": {"python": "3.11.7"},
    "source": "a list",
    "sub_policies": [[ROTATE, EQUALIZE], [EQUALIZE], []],
    "lost": ["Flip in 2 steps: no counterpart"],
    "licence": "",
    "note": "",
}


def policy(**changes) -> DatasetPolicy:
    return DatasetPolicy.make(**PARTS | changes)


def changed(changes: dict) -> dict:
    """A manifest without a digest."""
    manifest = {"format": 1, "kind": "dataset-level", **json.loads(json.dumps(PARTS))}
    for name, value in changes.items():
        if value is DELETE:
            del manifest[name]
        else:
            manifest[name] = value
    return manifest


def forged(changes: dict, tensors=None) -> bytes:
    """A file with a right digest, whatever stands in it."""
    manifest = changed(changes)
    digest = hashlib.sha256(spelled(manifest).encode() + b"\n").hexdigest()
    return container({"mapolicy": spelled({"digest": digest, **manifest})}, tensors or {})


def test_round_trip(tmp_path: Path) -> None:
    made = policy()
    made.save(tmp_path / "a")
    loaded = DatasetPolicy.load(tmp_path / "a", expect_digest=made.digest)
    assert loaded.manifest == made.manifest
    assert loaded.origin == str(tmp_path / "a")
    assert loaded.to_bytes() == (tmp_path / "a").read_bytes() == forged({})
    assert policy(note="x").digest != made.digest


def test_the_two_kinds_are_told_apart(tmp_path: Path, bundle_file: Path) -> None:
    policy().save(tmp_path / "a")
    for path, published in ((tmp_path / "a", True), (bundle_file, False)):
        assert isinstance(parse_any(Fetched(path.read_bytes(), "x", "x")), DatasetPolicy) == published
    with pytest.raises(InputError, match="of kind 'dataset-level', without extractor"):
        read_bundle(tmp_path / "a")
    (tmp_path / "b").write_bytes(forged({"kind": "per-class"}))
    with pytest.raises(InputError, match="of kind 'per-class', which this mapolicy does not know; upgrade"):
        read_bundle(tmp_path / "b")
    with pytest.raises(InputError, match="is not a dataset-level policy"):
        DatasetPolicy.load(bundle_file)


def step(**changes) -> dict:
    return {"sub_policies": [[ROTATE | changes]]}


HOSTILE = {
    "no format": ({"format": DELETE}, "no format version; this mapolicy reads format 1"),
    "a newer format": ({"format": 2}, "is a bundle of format 2; this mapolicy reads format 1"),
    "another kind": ({"kind": "other"}, "not a dataset-level policy"),
    "a field too many": ({"extractor": {}}, "extractor is not a field"),
    "an operation unknown": (step(operation="Invert"), "operation"),
    "a probability of 1.5": (step(probability=1.5), "probability"),
    "a negative probability": (step(probability=-0.1), "probability"),
    "a probability as text": (step(probability="1"), "probability"),
    "a probability that is not there": (
        {"sub_policies": [[{k: ROTATE[k] for k in ROTATE if k != "probability"}]]},
        "is missing",
    ),
    "a step with another field": (step(code="x"), "code is not a field"),
    "a step that is a list": ({"sub_policies": [[["Rotate", 0.5, 30.0]]]}, "sub_policies.0.0"),
    "a value too large": (step(value=181.0), "value of Rotate is 181, expected -180 to 180"),
    "a value that an operation has not": ({"sub_policies": [[EQUALIZE | {"value": 1.0}]]}, "expected 0 to 0"),
    "a direction that an operation has not": (
        {"sub_policies": [[EQUALIZE | {"operation": "Solarize", "value": 9.0, "mirrored": True}]]},
        "Solarize has no other direction",
    ),
    "no sub-policies": ({"sub_policies": []}, "sub_policies"),
    "sub-policies without a step": ({"sub_policies": [[], []]}, "at least one step"),
    "too many sub-policies": ({"sub_policies": [[EQUALIZE]] * (MAX_SUB_POLICIES + 1)}, "sub_policies"),
    "too many steps": ({"sub_policies": [[EQUALIZE] * (MAX_STEPS + 1)]}, "sub_policies"),
    "a text with an escape sequence": ({"source": "\x1b[31m"}, "source"),
    "a lost thing of a megabyte": ({"lost": ["x" * 2**20]}, "lost"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str) -> None:
    changes, says = HOSTILE[case]
    with pytest.raises(InputError) as problem:
        DatasetPolicy.from_fetched(Fetched(forged(changes), "x.safetensors", ""))
    line = str(problem.value)
    assert says in line
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= 240 - len("mapolicy: error: ")


def not_finite(number: str) -> bytes:
    text = spelled(changed({"digest": "0" * 64})).replace("30.0", number)
    return container({"mapolicy": text}, {})


def test_a_policy_of_the_largest_size_is_read_and_limits_hold(tmp_path: Path) -> None:
    largest = policy(sub_policies=[[EQUALIZE] * 4] * MAX_SUB_POLICIES)
    largest.save(tmp_path / "a")
    size = (tmp_path / "a").stat().st_size
    assert DatasetPolicy.load(tmp_path / "a").digest == largest.digest
    for limits, option in (
        (Limits(file_bytes=size - 1), f"file_bytes={size}"),
        (Limits(header_bytes=99), "header_bytes="),
    ):
        with pytest.raises(InputError, match=f"--limit {option}"):
            DatasetPolicy.load(tmp_path / "a", limits=limits)


def test_edited_or_padded_files_are_refused() -> None:
    for content, says in (
        (forged({}).replace(b"30.0", b"20.0"), "damaged or edited"),
        (container({"mapolicy": json.dumps(policy().manifest.model_dump())}, {}), "not spelled as"),
        (forged({}, {"alpha": raw([1.0])}), "tensor 'alpha' is not one"),
        (container({"mapolicy": spelled(changed({"digest": "0" * 64}))}, {}), "its digest says 000000000000"),
        (not_finite("NaN"), "has the number NaN"),
        (not_finite("1e999"), "value: found inf"),
        (b"{}", "too few"),
    ):
        with pytest.raises(InputError, match=says):
            DatasetPolicy.from_fetched(Fetched(content, "x", ""))
    with pytest.raises(InputError, match="another bundle than the one asked for"):
        DatasetPolicy.from_fetched(Fetched(forged({}), "x", ""), "0" * 64)


def test_what_is_made_is_checked() -> None:
    with pytest.raises(UsageError, match="sub_policies"):
        policy(sub_policies=[])


def test_every_operation_with_a_magnitude_has_limits() -> None:
    assert set(LIMITS) == {name for name in OPERATION_NAMES if has_magnitude(name)}
