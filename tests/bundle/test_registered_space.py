"""Bundles of a space from outside: they load where it is registered, and name what is missing elsewhere."""

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from mapolicy.bundle.dataset_level import DatasetPolicy
from mapolicy.bundle.describe import describe
from mapolicy.bundle.export import FORMS, export, omissions
from mapolicy.bundle.format import parse_bundle, serialise
from mapolicy.bundle.manifest import Operations
from mapolicy.bundle.safetensors_reader import RawTensor
from mapolicy.errors import InputError, UsageError
from mapolicy.transforms.space import OPERATION_SPECS, SPACES, Range, register_operation, register_space
from tests.helpers.bundle_factory import draft, forge, raw, small_tensors

NAMES = ["Identity", "Warp", "Rotate"]
STEP = {"operation": "Warp", "probability": 1.0, "value": 1.5, "mirrored": True}
LIST = {"versions": {"a": "1"}, "source": "a", "lost": (), "licence": "", "note": ""}


def register() -> None:
    register_operation("Warp", "bends", Range(0, 2, signed=True), "waves")(lambda images, value, fill: images)
    register_space("warped", NAMES, "three operations")


def forget() -> None:
    SPACES.remove("warped")
    OPERATION_SPECS.remove("Warp")


@pytest.fixture
def registered() -> Iterator[None]:
    register()
    yield
    if "warped" in SPACES:
        forget()


def tensors() -> dict[str, RawTensor]:
    values = np.arange(1.0, 10).reshape(3, 3)
    return small_tensors() | {
        "policy.embedding_layer.weight": raw(np.ones((100, 6))),
        "sampler.probabilities": raw(values / values.sum()),
        "sampler.means": raw(values / 10),
    }


def bundle() -> bytes:
    return serialise(draft(operations=Operations.of("warped", "black")), tensors())


def test_shapes_follow_the_space(registered: None) -> None:
    manifest, found = parse_bundle(bundle(), "x")
    assert manifest.operations.names == tuple(NAMES)
    assert manifest.embedding.width == 6
    assert manifest.data_settings()["operation_space"] == "warped"
    facts = describe(manifest, found, 1)
    assert (facts["likeliest"][0]["first"], facts["likeliest"][0]["second"]) == ("Rotate", "Rotate")
    with pytest.raises(InputError, match=r"'sampler.probabilities' has shape .*\(14, 14\).*, expected \(3, 3\)"):
        serialise(manifest, tensors() | {"sampler.probabilities": small_tensors()["sampler.probabilities"]})


@pytest.mark.parametrize("form", FORMS)
def test_exports_say_what_they_cannot(registered: None, form: str) -> None:
    manifest, found = parse_bundle(bundle(), "x")
    text = export(manifest, found, form)
    assert "Posterize" not in text.replace("levels of Posterize", "")
    lost = f"Warp: {form} has no such operation; Identity takes its place"
    assert lost in omissions(form, manifest.operations.names)
    assert lost not in omissions(form)


def test_an_operation_that_is_not_registered_is_named_and_nothing_is_imported(registered: None) -> None:
    content, modules = bundle(), set(sys.modules)
    forget()
    with pytest.raises(InputError) as problem:
        parse_bundle(content, "birds.safetensors")
    assert str(problem.value) == (
        "birds.safetensors: manifest operations: operation 'Warp' is unknown here; "
        "install or import what registers it, or name its module in MAPOLICY_PLUGINS"
    )
    assert set(sys.modules) == modules


def test_a_space_that_is_not_registered_is_named(registered: None) -> None:
    content = bundle()
    SPACES.remove("warped")
    with pytest.raises(InputError, match=r"space 'warped' is not one of metaaugment-v1, .*; install or import what"):
        parse_bundle(content, "x")
    OPERATION_SPECS.remove("Warp")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"operations.ranges.Warp.at_ten": 3.0}, r"range of Warp in warped is \(0, 3, True\), expected \(0, 2, True\)"),
        ({"operations.names": ["Warp", "Identity", "Rotate"]}, "operation 0 is Warp, expected Identity"),
        ({"operations.names": NAMES[:2]}, "2 operations, expected 3"),
        ({"embedding.width": 28}, "embedding.width is 28, expected 6"),
        ({"operations.space": "wide", "search.settings": {}}, "3 operations, expected 14"),
    ],
)
def test_what_differs_from_the_registered_space_is_rejected(registered: None, changes: dict, why: str) -> None:
    base = draft(operations=Operations.of("warped", "black"))
    with pytest.raises(InputError, match=why) as problem:
        parse_bundle(forge(changes, tensors(), base), "x")
    blamed = problem.value.remedy == "the space registered here differs: use the sender's version of the plugin"
    assert blamed == (changes.keys() <= {"operations.names", "operations.ranges.Warp.at_ten"})


def test_a_dataset_level_policy_with_a_registered_operation(registered: None, tmp_path) -> None:
    policy = DatasetPolicy.make(sub_policies=[[STEP]], **LIST)
    policy.save(tmp_path / "a")
    assert DatasetPolicy.load(tmp_path / "a").digest == policy.digest
    with pytest.raises(UsageError, match=r"value of Warp is 2\.5, expected -2 to 2"):
        DatasetPolicy.make(sub_policies=[[STEP | {"value": 2.5}]], **LIST)
    forget()
    with pytest.raises(InputError, match="found 'Warp', expected a registered one; install or import what"):
        DatasetPolicy.load(tmp_path / "a")
