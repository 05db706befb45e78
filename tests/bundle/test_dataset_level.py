"""Dataset-level policies: round trip, and files that are refused."""

import hashlib
import itertools
import json
import math
from pathlib import Path

import pytest

from mapolicy.bundle.dataset_level import DatasetPolicy, has_magnitude, value_range
from mapolicy.bundle.format import read_bundle
from mapolicy.bundle.limits import Limits
from mapolicy.bundle.load import open_bundle, parse_any
from mapolicy.bundle.manifest_base import MAX_STEPS, MAX_SUB_POLICIES
from mapolicy.bundle.source import Fetched
from mapolicy.errors import InputError, UsageError
from mapolicy.transforms.space import OPERATION_NAMES
from tests.helpers.bundle_factory import DELETE, container, raw, spelled
from tests.helpers.rejection import rejected

# What JSON takes as Python objects: the header's text is capped, so this does not grow with the file.
HEADER_MEMORY = 48 * 2**20
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
    """A file with a right digest, whatever stands in it, unless the changes have one."""
    manifest = changed(changes)
    digest = hashlib.sha256(spelled(manifest).encode() + b"\n").hexdigest()
    return container({"mapolicy": spelled({"digest": digest} | manifest)}, tensors or {})


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


STAGES = [
    {"until": 0.25, "counts": [1.0], "steps": []},
    {"until": 1.0, "counts": [0.2, 0.3, 0.5], "steps": [ROTATE, EQUALIZE, ROTATE | {"probability": 0.2}]},
]


def schedule(place: int = 1, **changes) -> dict:
    """A schedule with one stage changed."""
    return {"sub_policies": [], "stages": [*STAGES[:place], STAGES[place] | changes, *STAGES[place + 1 :]]}


def test_a_schedule_round_trips_and_a_list_has_no_stages(tmp_path: Path) -> None:
    made = policy(**schedule())
    made.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == forged(schedule())
    assert DatasetPolicy.load(tmp_path / "a").manifest == made.manifest
    assert "stages" not in policy().manifest.to_json()


def test_how_often_an_operation_is_used_is_what_all_orders_and_outcomes_give() -> None:
    steps = policy(**schedule()).manifest.stages[1].steps
    expected = [0.0] * 3
    for order in itertools.permutations(range(3)):
        for reached in itertools.product((False, True), repeat=3):
            chances = [
                step.probability if is_reached else 1 - step.probability
                for step, is_reached in zip(steps, reached, strict=True)
            ]
            taken = [place for place in order if reached[place]]
            for count, likely in enumerate((0.2, 0.3, 0.5)):
                for place in taken[:count]:
                    expected[place] += math.prod(chances) * likely / 6
    manifest = policy(**schedule()).manifest
    assert manifest.stages[1].uses() == pytest.approx(expected, abs=1e-12)
    rotate, equalize = expected[0] + expected[2], expected[1]
    assert manifest.uses() == pytest.approx({"Rotate": 0.75 * rotate, "Equalize": 0.75 * equalize})
    assert policy().manifest.uses() == pytest.approx({"Rotate": 0.5 / 3, "Equalize": 2 / 3})


def step(**changes) -> dict:
    return {"sub_policies": [[ROTATE | changes]]}


HOSTILE = {
    "A17 no format": ({"format": DELETE}, "no format version; this mapolicy reads format 1"),
    "A17 a newer format": ({"format": 2}, "is a bundle of format 2; this mapolicy reads format 1"),
    "A17 another kind": ({"kind": "other"}, "is a bundle of kind 'other', which this mapolicy does not know"),
    "A26 a field too many": ({"extractor": {}}, "extractor is not a field"),
    "A24 an operation unknown": (step(operation="Invert"), "operation"),
    "A22 a probability of 1.5": (step(probability=1.5), "probability"),
    "A22 a negative probability": (step(probability=-0.1), "probability"),
    "A22 a probability as text": (step(probability="1"), "probability"),
    "A22 a probability that is not there": (
        {"sub_policies": [[{k: ROTATE[k] for k in ROTATE if k != "probability"}]]},
        "is missing",
    ),
    "A26 a step with another field": (step(code="x"), "code is not a field"),
    "A26 a step that is a list": ({"sub_policies": [[["Rotate", 0.5, 30.0]]]}, "sub_policies.0.0"),
    "A24 a value too large": (step(value=181.0), "value of Rotate is 181, expected -180 to 180"),
    "A24 a value that an operation has not": ({"sub_policies": [[EQUALIZE | {"value": 1.0}]]}, "expected 0 to 0"),
    "A24 a direction that an operation has not": (
        {"sub_policies": [[EQUALIZE | {"operation": "Solarize", "value": 9.0, "mirrored": True}]]},
        "Solarize has no other direction",
    ),
    "A26 no sub-policies": ({"sub_policies": []}, "sub_policies"),
    "A26 sub-policies without a step": ({"sub_policies": [[], []]}, "at least one step"),
    "A26 too many sub-policies": ({"sub_policies": [[EQUALIZE]] * (MAX_SUB_POLICIES + 1)}, "sub_policies"),
    "A26 too many steps": ({"sub_policies": [[EQUALIZE] * (MAX_STEPS + 1)]}, "sub_policies"),
    "A26 a text with an escape sequence": ({"source": "\x1b[31m"}, "source"),
    "A26 a lost thing of a megabyte": ({"lost": ["x" * 2**20]}, "lost"),
    "A17 format true": ({"format": True}, "is a bundle of format True; this mapolicy reads format 1"),
    "A17 kind a list": ({"kind": ["dataset-level"]}, "is a bundle of kind a list of 1, which this mapolicy does not"),
    "A21 a value of 400 digits": (step(value=10**400), "value: found 1000"),
    "A22 a probability true": (
        step(probability=True),
        "0.0.probability: found True, expected a valid",
    ),
    "A24 a value below": (step(value=-180.5), "value of Rotate is -180.5, expected -180 to 180"),
    "A24 a mirrored value out of range": (
        {"sub_policies": [[EQUALIZE | {"operation": "Color", "value": 2.0, "mirrored": True}]]},
        "Color has no other direction, found mirrored",
    ),
    "A24 mirrored as a number": (step(mirrored=1), "sub_policies.0.0.mirrored: found 1, expected a valid boolean"),
    "A24 an operation in lower case": (
        step(operation="rotate"),
        "found 'rotate', expected a registered one",
    ),
    "A24 an operation of 1 MB": (step(operation="R" * 2**20), "operation: found 'RRR"),
    "A26 a version with ESC": (
        {"versions": {"python": "\x1b[2J"}},
        "versions.python: found '\\x1b[2J', expected",
    ),
    "A26 a version's name with ESC": ({"versions": {"\x1b": "1"}}, "versions.\\x1b"),
    "A26 no versions": ({"versions": {}}, "versions: found a dict of 0"),
    "A26 bidi in the licence": ({"licence": "mit\u202e"}, "licence: found 'mit\\u202e', expected printable"),
    "A26 osc in the note": ({"note": "\x1b]0;title\x07"}, "note: found '\\x1b]0;title\\x07', expected printable"),
    "A26 a carriage return in the note": ({"note": "a\rb"}, "note: found 'a\\rb', expected printable"),
    "A26 a note of a megabyte": ({"note": "x" * 2**20}, "note: found 'xxx"),
    "A26 a surrogate in the source": ({"source": "\ud800"}, "source: found"),
    "A26 an empty source": ({"source": ""}, "source: found ''"),
    "A26 a source that is a list": ({"source": ["x"]}, "source: found a list of 1, expected a valid string"),
    "A26 lost things that are numbers": ({"lost": [1]}, "lost.0: found 1, expected a valid string"),
    "A26 65 lost things": ({"lost": ["x"] * 65}, "lost: found a list of 65"),
    "A26 500,000 lost things": ({"lost": [0] * 500_000}, "lost"),
    "A26 sub-policies that are a table": ({"sub_policies": {"0": []}}, "sub_policies: found a dict of 1"),
    "A26 sub-policies that are a text": ({"sub_policies": "Rotate"}, "sub_policies: found 'Rotate'"),
    "A26 sub-policies of numbers": ({"sub_policies": [0] * 500_000}, "sub_policies"),
    "A26 a sub-policy of 100,000 numbers": ({"sub_policies": [[0] * 500_000]}, "sub_policies.0"),
    "A26 200,000 sub-policies": (
        {"sub_policies": [[]] * 200_000},
        "lists, tables and keys, more than the 168136 allowed",
    ),
    "A26 160,000 empty sub-policies": ({"sub_policies": [[]] * 160_000}, "sub_policies: found a list of 160000"),
    "A26 100,000 fields": (
        {f"a{n}": 1 for n in range(100_000)},
        "has a table of 100009 keys, more than the 200",
    ),
    "A26 a step of 100,000 fields": (
        {"sub_policies": [[{f"a{n}": 1 for n in range(100_000)}]]},
        "has a table of 100000 keys, more than the 200 allowed",
    ),
    "A26 a field missing": ({"licence": DELETE}, "licence is missing"),
    "A26 a deep step": (step(value=[[[[]]]]), "is JSON nested deeper than 5 levels"),
    "A26 stages beside sub-policies": ({"stages": STAGES}, "sub_policies and stages: both, expected one of them"),
    "A26 no stages": ({"sub_policies": [], "stages": []}, "stages: found a list of 0, expected at least 1"),
    "A26 stages null": ({"stages": None}, "stages"),
    "A26 257 stages": ({"sub_policies": [], "stages": STAGES[:1] * 257}, "stages: found a list of 257"),
    "A26 200,000 stages": ({"sub_policies": [], "stages": [0] * 200_000}, "stages"),
    "A26 stages that descend": (schedule(0, until=1.0), "until has to ascend from above 0 to 1"),
    "A26 a stage that ends at 0": (schedule(0, until=0.0), "until has to ascend from above 0 to 1"),
    "A26 a last stage that ends before": (schedule(until=0.9), "until has to ascend from above 0 to 1"),
    "A26 a stage that ends at 2": (schedule(until=2.0), "stages.1.until"),
    "A26 counts that sum to 0.9": (schedule(counts=[0.4, 0.5]), "counts sum to 0.9, expected 1"),
    "A26 a negative count": (schedule(counts=[-0.5, 1.5]), "stages.1.counts.0"),
    "A26 no counts": (schedule(counts=[]), "stages.1.counts: found a list of 0"),
    "A26 ten counts": (schedule(counts=[0.1] * 10), "stages.1.counts: found a list of 10"),
    "A26 65 steps of a stage": (schedule(steps=[ROTATE] * 65), "stages.1.steps: found a list of 65"),
    "A26 a schedule that takes nothing": (schedule(counts=[1.0]), "expected at least one step that is taken"),
    "A26 a schedule of steps of chance 0": (schedule(steps=[ROTATE | {"probability": 0.0}]), "step that is taken"),
    "A26 a stage with another field": (schedule(code="x"), "stages.1.code is not a field"),
    "A24 a value too large in a stage": (schedule(steps=[ROTATE | {"value": 181.0}]), "value of Rotate is 181"),
    "A37 a digest of another content": ({"digest": "0" * 64}, "it was damaged or edited"),
    "A37 a digest in capitals": ({"digest": "A" * 64}, "digest: found 'AAA"),
    "A37 a digest that is a number": ({"digest": 7}, "digest: found 7, expected a valid string"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str, tmp_path: Path) -> None:
    changes, says = HOSTILE[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(forged(changes))
    assert says in rejected(open_bundle, path, 2 * path.stat().st_size + HEADER_MEMORY)


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
    moving = {name for name in OPERATION_NAMES if value_range(name) != (0, 0)}
    assert moving == {name for name in OPERATION_NAMES if has_magnitude(name)}
