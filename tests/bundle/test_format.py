"""The bundle as bytes: round trip, one spelling, what the digest covers, damage."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from mapolicy import config
from mapolicy.bundle.format import digest_of, level_probabilities, parse_bundle, read_bundle, serialise
from mapolicy.bundle.safetensors_reader import RawTensor
from mapolicy.errors import InputError, UsageError
from mapolicy.transforms import space
from tests.helpers.bundle_factory import (
    LEVELS,
    UNIFORM_ROWS,
    draft,
    draft2,
    forge,
    log_levels,
    product_of_marginals,
    raw,
    small_tensors,
    small_tensors2,
    verification,
)
from tests.helpers.settings import TINY

VALID = forge()


def test_valid_bundle_round_trips() -> None:
    manifest, tensors = parse_bundle(VALID, "valid")
    assert {name: (t.dtype, t.shape, bytes(t.data)) for name, t in tensors.items()} == {
        name: (t.dtype, t.shape, bytes(t.data)) for name, t in small_tensors().items()
    }
    assert manifest.dataset.classes == ("zero", "one", "two", "three")
    assert manifest.note.endswith("<script>alert(1)</script>"), "markup is text: whoever shows it escapes it"
    again = serialise(manifest, tensors)
    assert parse_bundle(again, "again")[0] == manifest
    assert serialise(draft(), dict(reversed(small_tensors().items()))) == again, "the order of names plays no role"


def test_format_2_round_trips_and_its_digest_covers_its_parts() -> None:
    content = serialise(draft2(), small_tensors2())
    assert content == serialise(parse_bundle(content, "b")[0], small_tensors2())
    manifest, tensors = parse_bundle(content, "b")
    assert (manifest.format, manifest.levels.strength, len(manifest.verification.rows)) == (2, 30.0, 5)
    assert bytes(tensors["sampler.log_levels"].data) == log_levels().tobytes()
    assert manifest.draft() == draft2()
    one_more = verification(images=101)
    others = [draft2(verification=None), draft2(verification=one_more), draft2(levels=LEVELS | {"stages": 3}), draft()]
    digests = {digest_of(each, small_tensors2()) for each in [draft2(), *others]}
    assert len(digests) == len(others) + 1


def test_levels_and_p_jk_are_the_same_policy() -> None:
    """A strength of 0 draws uniformly, and only the second half of the stages counts."""
    found = draft2(levels=LEVELS | {"strength": 0.0}, verification=verification(UNIFORM_ROWS))
    content = serialise(
        found,
        small_tensors()
        | {"sampler.log_levels": raw(log_levels()), "sampler.probabilities": raw(np.full((14, 14), 1 / 196))},
    )
    assert parse_bundle(content, "b")[0].levels.strength == 0
    table = log_levels()
    table[0] = 0
    assert parse_bundle(serialise(draft2(), small_tensors2(table)), "b")[0].format == 2
    drawn = level_probabilities(table, 30.0)
    np.testing.assert_allclose(np.outer(drawn.sum(1), drawn.sum(1)), product_of_marginals(table), rtol=1e-12)


@pytest.mark.parametrize("absent", ["levels", "verification"])
def test_a_part_that_is_absent_is_not_written(absent: str) -> None:
    found = (
        draft2(verification=None)
        if absent == "verification"
        else draft2(levels=None, verification=verification(UNIFORM_ROWS))
    )
    tensors = small_tensors2() if absent == "verification" else small_tensors()
    text = json.loads(parse_bundle(serialise(found, tensors), "b")[0].to_json())
    assert text["format"] == 2
    assert absent not in text
    assert None not in text.values()


def test_library_and_factory_agree_on_the_digest() -> None:
    manifest, tensors = parse_bundle(VALID, "valid")
    assert digest_of(draft(), small_tensors()) == manifest.digest == digest_of(manifest, tensors)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_plain_safetensors_reads_it(dtype: str, tmp_path: Path) -> None:
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    part = draft().extractor.model_dump() | {"dtype": names[dtype]}
    tensors = small_tensors() | {"extractor.conv.weight": raw(np.arange(6).reshape(2, 3), dtype)}
    path = tmp_path / "bundle.safetensors"
    path.write_bytes(serialise(draft(extractor=part), tensors))
    with safetensors.safe_open(path, "np") as file:
        assert list(file.metadata()) == ["mapolicy"]
        assert sorted(file.keys()) == sorted(tensors)
        assert file.get_slice("extractor.conv.weight").get_dtype() == dtype
        for name, tensor in tensors.items():
            if tensor.dtype != "BF16":
                np.testing.assert_array_equal(file.get_tensor(name), tensor.array())
    assert read_bundle(path)[0].extractor.dtype == names[dtype]


def test_same_bytes_as_safetensors_own_writer() -> None:
    content = serialise(draft(), small_tensors())
    metadata_text = json.loads(content[8 : 8 + struct.unpack_from("<Q", content)[0]])["__metadata__"]
    arrays = {name: np.array(tensor.array()) for name, tensor in small_tensors().items()}
    theirs = safetensors.numpy.save(arrays, metadata_text)
    ours_table, theirs_table = (
        json.loads(file[8 : 8 + struct.unpack_from("<Q", file)[0]]) for file in (content, theirs)
    )
    assert ours_table == theirs_table
    assert list(ours_table) == list(theirs_table)
    assert content[-len(arrays) :] == theirs[-len(arrays) :]


@pytest.mark.parametrize("name", sorted(small_tensors()))
def test_digest_depends_on_every_tensor(name: str) -> None:
    tensors = small_tensors()
    changed = bytearray(tensors[name].data)
    changed[0] ^= 1
    other = RawTensor(tensors[name].dtype, tensors[name].shape, memoryview(bytes(changed)))
    assert digest_of(draft(), tensors | {name: other}) != digest_of(draft(), tensors)


def test_digest_tells_names_shapes_and_dtypes_apart() -> None:
    same = memoryview(bytes(16))
    variants = [("a", "F32", (4,)), ("b", "F32", (4,)), ("a", "F32", (2, 2)), ("a", "F16", (8,)), ("a", "I64", (2,))]
    digests = {digest_of(draft(), {f"extractor.{n}": RawTensor(d, s, same)}) for n, d, s in variants}
    assert len(digests) == len(variants)


@pytest.mark.parametrize(
    "change",
    [
        {"note": "another"},
        {"licence": ""},
        {"results": {"validation_top1": 75.5}},
        {"versions": {"python": "3.12.0"}},
        {"search": {"settings": {}}},
        {"operations": {**draft().operations.model_dump(), "fill": "black"}},
        {"dataset": {**draft().dataset.model_dump(), "fingerprint": "f" * 64}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_digest_depends_on_every_part_of_the_manifest(change) -> None:
    assert digest_of(draft(**change), small_tensors()) != digest_of(draft(), small_tensors())


def test_any_changed_byte_is_noticed() -> None:
    """300 positions over the whole file, one bit each: always the one kind of error."""
    draw = np.random.default_rng(0)
    for position in [*range(16), *draw.integers(0, len(VALID), 300)]:
        changed = bytearray(VALID)
        changed[position] ^= 1 << int(draw.integers(0, 8))
        with pytest.raises(InputError):
            parse_bundle(bytes(changed), "changed")


def test_every_truncation_is_noticed() -> None:
    for length in np.random.default_rng(1).integers(0, len(VALID), 200):
        with pytest.raises(InputError):
            parse_bundle(VALID[:length], "short")


def test_expected_digest() -> None:
    digest = parse_bundle(VALID, "valid")[0].digest
    assert parse_bundle(VALID, "valid", digest)[0].digest == digest
    with pytest.raises(InputError, match=f"has the digest {digest[:12]}.*, expected 'ffffff"):
        parse_bundle(VALID, "valid", "f" * 64)


def test_two_channel_policies_and_inputs() -> None:
    """Each `policy_input` has its own tensors."""
    for sees, absent in (("features", "embedding_layer"), ("embedding", "feature_layer")):
        tensors = {name: tensor for name, tensor in small_tensors().items() if absent not in name}
        tensors["policy.output.weight"] = raw(np.zeros((1, 100)))
        content = serialise(draft(policy={"hidden": 100, "input": sees}), tensors)
        assert parse_bundle(content, "bundle")[0].policy.input == sees


def test_a_policy_of_the_loss_has_one_layer_of_its_own() -> None:
    shape = {"hidden": 100, "input": "loss"}
    tensors = {name: tensor for name, tensor in small_tensors().items() if "_layer" not in name}
    tensors |= {"policy.output.weight": raw(np.zeros((1, 100))), "policy.loss_layer.bias": raw(np.zeros(100))}
    content = serialise(draft(policy=shape), tensors | {"policy.loss_layer.weight": raw(np.zeros((100, 1)))})
    assert parse_bundle(content, "bundle")[0].policy.input == "loss"
    for wrong, says in (
        (tensors, "policy.loss_layer.weight' is missing"),
        (tensors | {"policy.loss_layer.weight": raw(np.zeros((100, 2)))}, "expected"),
        (tensors | {"policy.loss_layer.weight": raw(np.full((100, 1), np.nan))}, "policy.loss_layer.weight"),
        (small_tensors() | {"policy.loss_layer.weight": raw(np.zeros((100, 1)))}, "policy."),
    ):
        with pytest.raises(InputError, match=says):
            serialise(draft(policy=shape), wrong)


def test_writer_refuses_what_the_reader_would() -> None:
    with pytest.raises(InputError, match="alpha has the value 0"):
        serialise(draft(), small_tensors() | {"alpha": raw(0.0)})
    with pytest.raises(InputError, match="not a name that bundles have"):
        serialise(draft(), small_tensors() | {"extractor.a b": raw(0.0)})
    with pytest.raises(UsageError, match="manifest note: found"):
        draft(note="\x1b")


def test_settings_of_a_search_stand_in_a_manifest_as_they_are() -> None:
    settings = config.SearchConfig(
        dataset="digits",
        proxy="test_resnet",
        alpha_initial=0.01,
        **TINY
        | {
            "train_per_class": 6,
            "test_per_class": 3,
            "epochs": 2,
            "clip_norm": 5,
            "policy_learning_rate": 1e-3,
            "alpha_learning_rate": 1e-2,
        },
    )
    manifest = parse_bundle(serialise(draft(search={"settings": settings.portable()}), small_tensors()), "b")[0]
    assert manifest.search.settings == settings.portable()
    shared = {key: value for key, value in manifest.data_settings().items() if key != "download"}
    assert shared == {key: settings.to_mapping()[key] for key in shared}


def test_draft_of_a_manifest_changes_what_it_is_told() -> None:
    manifest = parse_bundle(VALID, "valid")[0]
    assert manifest.draft() == draft()
    assert manifest.draft(note="finer") == draft(note="finer")


def test_every_space_round_trips() -> None:
    operations = type(draft().operations)
    for name in space.SPACES:
        content = serialise(draft(operations=operations.of(name, "black")), small_tensors())
        assert parse_bundle(content, "bundle")[0].operations.space == name


def test_reading_needs_neither_torch_nor_timm(tmp_path: Path) -> None:
    path = tmp_path / "bundle.safetensors"
    path.write_bytes(VALID)
    code = (
        "import sys; from pathlib import Path; from mapolicy.bundle.format import read_bundle\n"
        f"read_bundle(Path({str(path)!r}))\n"
        "print([name for name in ('torch', 'timm', 'safetensors') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
