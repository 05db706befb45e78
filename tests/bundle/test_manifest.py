"""The manifest's JSON Schema and the document's tables: generated from the model, true of real and hostile files."""

import functools
import json
import re
from importlib.resources import files

import pytest

from mapolicy.bundle import dataset_level as published
from mapolicy.bundle import manifest
from mapolicy.bundle import manifest_base as sealed
from mapolicy.bundle.format import parse_bundle, serialise
from mapolicy.errors import InputError
from mapolicy.policy.import_policy import import_policy
from mapolicy.transforms import space
from tests.bundle import test_dataset_level as test_published
from tests.bundle.test_dataset_level import changed
from tests.bundle.test_hostile import HOSTILE
from tests.helpers import generated
from tests.helpers.bundle_factory import (
    LEVELS,
    UNIFORM_ROWS,
    draft,
    draft2,
    forge,
    manifest_with,
    small_tensors,
    small_tensors2,
    spelled,
    verification,
)
from tests.helpers.make_bundles import DATA
from tests.helpers.plain_reader import read

STALE = "is not what the model says; run python tests/helpers/generated.py"
# What a field's own type and range has nothing to do with: fields that contradict each other, and the spelling.
LONGEST = 100_000
# And a lone surrogate: a pattern that names them would refuse others' emoji where it counts in halves of characters.
BETWEEN_FIELDS = (
    *(
        "cannot be as many for each direction",
        "edges are not",
        "levels.context is",
        "input is 'none', context",
        "are correct,",
        "no row of this policy",
        "more are not",
        "cannot be correct",
    ),
    *("the lower one first", "the usual ones, which are not written"),
    *("ud800", "canonical", "images used", "(the split of", "the rest of the manifest", "which says where"),
    "is not one of",  # which spaces are registered
)


@functools.cache
def manifests() -> dict[str, str]:
    """The manifests in the hostile files that have one, as text."""
    found = {}
    for case, (content, _) in HOSTILE.items():
        if not case.startswith(("A12", "A17", "A2", "A37")):
            continue
        try:
            text = content if isinstance(content, bytes) else content(None)
            header = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])
            found[case] = header["__metadata__"]["mapolicy"]
            if len(found[case]) > LONGEST:
                raise ValueError("left out: a validator takes seconds to list its faults")
            json.loads(found[case])
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            found.pop(case, None)
    return found


@pytest.mark.parametrize("model", [manifest, published])
def test_the_shipped_schemas_are_the_models(model) -> None:
    path = generated.ROOT / "mapolicy" / "bundle" / model.SCHEMA_FILE
    assert path.read_text(encoding="utf-8") == generated.schema_text(model.json_schema()), f"{path.name} {STALE}"
    assert json.loads(files("mapolicy.bundle").joinpath(model.SCHEMA_FILE).read_text()) == model.json_schema()


def test_the_documents_tables_are_the_models() -> None:
    text = generated.DOCUMENT.read_text(encoding="utf-8")
    assert generated.document(text) == text, f"{generated.DOCUMENT.name} {STALE}"
    named = set(re.findall(r"^\| `([a-z_.*]+)` \| ", text, re.MULTILINE))
    for schema, least in ((manifest.json_schema(), 50), (published.json_schema(), 12)):
        paths = {path for path, _, _ in generated.fields(schema, schema)}
        assert len(paths) > least
        assert paths <= named
    assert f"{sealed.MAX_DATASET_LEVEL_ENTRIES:,} lists, tables and keys" in text


def leaves(value, above="") -> set[str]:
    """Paths of a manifest's fields; the names of operations are `*`; without what tables with free keys hold."""
    found = set()
    for key, part in value.items():
        path = f"{above}{'*' if key in space.OPERATION_NAMES else key}"
        found.add(path)
        if isinstance(part, list) and part and isinstance(part[0], dict):
            found |= leaves(part[0], f"{path}.*.")
        if isinstance(part, dict) and path not in ("versions", "results", "search.settings", "extractor.model_args"):
            found |= leaves(part, f"{path}.")
    return found


def test_the_document_has_every_field_of_a_real_bundle_and_no_other() -> None:
    schema = manifest.json_schema()
    documented = {path for path, _, _ in generated.fields(schema, schema)}
    first, _ = read(DATA / "format-1-scalar.safetensors")
    second, _ = read(DATA / "format-2-levels.safetensors")
    third, _ = read(DATA / "format-2-reading.safetensors")
    seeing = json.loads(draft2(levels=LEVELS | {"input": "class", "context": 4}).content())
    found = leaves(second) | leaves(third) | leaves(seeing)
    assert {path for path in found if path != "operations.ranges.*"} == documented
    later = {path for path in documented if path.startswith(manifest.LATER_PARTS)}
    assert {path for path in leaves(first) if path != "operations.ranges.*"} == documented - later


def test_the_document_names_every_tensor() -> None:
    text = generated.DOCUMENT.read_text(encoding="utf-8")
    for name in small_tensors2():
        stem = name.removesuffix(".weight").removesuffix(".bias")
        assert f"`{stem}" in text or name.startswith("extractor."), name


def test_every_part_of_the_document_is_generated_once() -> None:
    text = generated.DOCUMENT.read_text(encoding="utf-8")
    order = ["spaces", "fields", "arguments", "published", "values", "limits"]
    assert re.findall(r"<!-- generated: (\w+) -->", text) == order


def validator(path):
    """Whether a manifest satisfies the schema in that file, by a validator that is not ours."""
    jsonschema = pytest.importorskip("jsonschema", reason="the test extra has it")
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid


@pytest.fixture(scope="module")
def valid():
    return validator(generated.SEARCHED)


def test_the_schema_of_dataset_level_policies_says_what_their_reader_says() -> None:
    valid = validator(generated.DATASET_LEVEL)
    made = json.loads(json.dumps(import_policy("autoaugment-imagenet").manifest.model_dump()))
    assert valid(made)
    schema = published.json_schema()
    leaves_of_steps = {f"sub_policies.*.*.{key}" for key in made["sub_policies"][0][0]}
    leaves_of_stages = {f"stages.*.{key}" for key in test_published.STAGES[0]} | {
        f"stages.*.steps.*.{key}" for key in made["sub_policies"][0][0]
    }
    paths = {path for path, _, _ in generated.fields(schema, schema)}
    assert paths == set(made) | leaves_of_steps | {"stages"} | leaves_of_stages
    assert valid(json.loads(json.dumps(import_policy("pba-cifar10").manifest.model_dump())))
    assert not valid({key: value for key, value in made.items() if key != "kind"})
    refused = {case: {"digest": "0" * 64} | changed(changes) for case, (changes, _) in test_published.HOSTILE.items()}
    # What two fields say of each other is the reader's alone, what is registered, and what no file in UTF-8 can hold.
    assert {case for case, found in refused.items() if valid(found)} == {
        "A24 a direction that an operation has not",
        "A24 a mirrored value out of range",
        "A24 an operation unknown",
        "A24 an operation in lower case",
        "A26 a surrogate in the source",
        "A26 stages that descend",
        "A26 a stage that ends at 0",
        "A26 a last stage that ends before",
        "A26 counts that sum to 0.9",
        "A26 a schedule that takes nothing",
        "A26 a schedule of steps of chance 0",
        "A37 a digest of another content",
    }


def test_the_schema_accepts_what_the_reader_accepts(valid) -> None:
    for path in sorted(DATA.glob("*.safetensors")):
        found = read(path)[0]
        accepts = validator(generated.DATASET_LEVEL) if "kind" in found else valid
        assert accepts(found), path
    for name in space.SPACES:
        operations = manifest.Operations.of(name, "black")
        content = serialise(draft(operations=operations, licence="", note="é\n∀ — 字"), small_tensors())
        assert valid(json.loads(parse_bundle(content, "b")[0].to_json()))
    uniform = verification(UNIFORM_ROWS)
    drawn_uniformly = draft2(levels=LEVELS | {"strength": 0.0}, verification=uniform)
    for found, tensors in (
        (draft2(), small_tensors2()),
        (draft2(verification=None), small_tensors2()),
        (draft2(levels=None, verification=uniform), small_tensors()),
        (drawn_uniformly, small_tensors2(strength=0)),
    ):
        assert valid(json.loads(parse_bundle(serialise(found, tensors), "b")[0].to_json()))
    part = draft().extractor.model_dump() | {"model_args": {"img_size": 8, "drop_rate": 0}}
    assert valid(json.loads(parse_bundle(serialise(draft(extractor=part), small_tensors()), "b")[0].to_json()))


def refusal(text: str) -> str:
    """What the reader says of a manifest; empty where it accepts it."""
    try:
        manifest.check_manifest(sealed.read_json(text, "x"), "x")
    except InputError as problem:
        return problem.why
    return ""


def test_the_schema_refuses_what_a_field_says_wrong(valid) -> None:
    refused = {case: why for case, text in manifests().items() if (why := refusal(text))}
    of_one_field = {
        case for case, why in refused.items() if "keys" not in why and not any(words in why for words in BETWEEN_FIELDS)
    }
    assert len(of_one_field) > 40
    assert {case: refused[case] for case in of_one_field if valid(json.loads(manifests()[case]))} == {}


@pytest.mark.parametrize("field", ["arch", "call"])
def test_a_last_line_break_is_refused_by_the_schema_too(valid, field: str) -> None:
    found = manifest_with({"digest": "0" * 64})
    assert valid(found)
    found["extractor"][field] += "\n"
    assert not valid(found)


def test_every_field_is_required_and_no_other_allowed() -> None:
    whole = manifest_with({"digest": "0" * 64}, draft2())
    left_out = ("extractor.model_args", *manifest.LATER_PARTS)
    paths = [path for path in leaves(whole) if "*" not in path and path not in left_out]
    assert len(paths) > 55
    for path in paths:
        *folders, last = path.split(".")
        for edit in ("missing", "not a field"):
            edited = json.loads(spelled(whole))
            part = edited
            for folder in folders:
                part = part[folder]
            if edit == "missing":
                del part[last]
            else:
                part[f"{last}_too"] = part[last]
            with pytest.raises(InputError, match=rf"{last}(_too)? .*{edit}|no format version"):
                manifest.check_manifest(sealed.read_json(spelled(edited), "x"), "x")


def test_a_forged_bundle_of_the_factory_is_valid(valid) -> None:
    text = forge()
    header = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])
    assert valid(json.loads(header["__metadata__"]["mapolicy"]))
