"""A table of hostile bundles: each refused in one line, at once (RELIABILITY.md, A01 to A27 and A37)."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mapolicy.bundle.dataset_level import DatasetPolicy
from mapolicy.bundle.format import read_bundle
from mapolicy.bundle.limits import Limits
from mapolicy.bundle.load import open_bundle
from mapolicy.bundle.safetensors_reader import RawTensor
from mapolicy.errors import InputError
from mapolicy.transforms import space
from tests.helpers.bundle_factory import (
    DELETE,
    HELD_OUT,
    IMAGES,
    LEVEL_BINS,
    ROWS,
    Payload,
    container,
    draft2,
    forge,
    forge2,
    framed,
    log_levels,
    manifest_with,
    raw,
    small_tensors,
    small_tensors2,
    spelled,
    verification,
    zip_of,
)
from tests.helpers.rejection import rejected

LIMITS = Limits()
# What JSON takes as Python objects: the header's text is capped, so this does not grow with the file.
HEADER_MEMORY = 32 * 2**20

VALID = forge()
HEADER_END = 8 + struct.unpack_from("<Q", VALID)[0]


def table_edit(edit) -> bytes:
    """The valid bundle with its header's table changed."""
    return container({"mapolicy": spelled(manifest_with())}, small_tensors(), edit)


def header(text: bytes) -> bytes:
    return framed(text) + VALID[HEADER_END:]


def metadata(text: str) -> bytes:
    return container({"mapolicy": text}, small_tensors())


def renamed(name: str) -> bytes:
    return forge(tensors=small_tensors() | {name: raw([1.0])})


def with_value(name: str, value: float, dtype="F32") -> bytes:
    """One number of one tensor replaced."""
    tensors = small_tensors()
    numbers = np.array(tensors[name].array())
    numbers.reshape(-1)[-1] = value
    return forge(tensors=tensors | {name: raw(numbers, dtype)})


def p_jk(values) -> bytes:
    return forge(sampler__probabilities=raw(values))


def effects(count: int, value: float = 0.1, shared: bool = True) -> np.ndarray:
    """V of so many classes or directions, float32 [count, 14, 4]."""
    table = np.full((count, 14, LEVEL_BINS), value, np.float32)
    if not shared:
        table[0, :, 0] = 0
    return table


def with_level(value: float, operation="Rotate") -> bytes:
    """One number of the levels replaced."""
    table = log_levels()
    table[0, NAMES.index(operation), -1] = value
    return forge2(sampler__log_levels=raw(table))


def infinite_strength() -> bytes:
    text = spelled(manifest_with({"levels.strength": float("inf")}, draft2()))
    return container({"mapolicy": text}, small_tensors2())


def infinite_range() -> bytes:
    text = spelled(manifest_with({"reading": READING | {"value_range": [0.0, float("inf")]}}, draft2()))
    return container({"mapolicy": text}, small_tensors2())


def swap(values, first, second):
    values = list(values)
    values[first], values[second] = values[second], values[first]
    return values


def polyglot() -> bytes:
    archive = zip_of(b"payload" * 3)
    archive += b"\0" * (-len(archive) % 4)
    content = forge(extractor__hidden=RawTensor("F32", (len(archive) // 4,), memoryview(archive)))
    assert zipfile.is_zipfile(io.BytesIO(content)), "the case must be what it says"
    return content


def uniform(size=14):
    return np.full((size, size), 1 / size**2)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(VALID)
        os.truncate(file.fileno(), 200 * 2**30)


def first_probability(value):
    values = uniform()
    values[0, 0] += value
    values[0, 1] -= value
    return values


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
NAMES = list(space.OPERATION_NAMES)
RANGES = manifest_with()["operations"]["ranges"]
ROW = verification()["rows"]
USUAL = {"resize": "crop", "interpolation": "bilinear", "alpha_background": "white", "value_range": None}
READING = USUAL | {"resize": "pad", "value_range": [-1000.0, 1000.0]}

# id: (what makes the file: bytes, or a function that writes to the path, and what the error must say)
HOSTILE = {
    "A01 missing": (lambda path: None, "No such file"),
    "A02 folder": (lambda path: path.mkdir(), "is a folder"),
    "A03 fifo": (os.mkfifo, "not a regular file"),
    "A04 empty": (b"", "has 0 bytes"),
    "A04 seven bytes": (VALID[:7], "has 7 bytes"),
    "A05 length 2^64-1": (b"\xff" * 8 + VALID[8:], "18446744073709551615 bytes"),
    "A05 length over the cap": (struct.pack("<Q", LIMITS.header_bytes + 8) + VALID[8:], "more than the"),
    "A05 header over the cap": (
        framed(b'{"a":"' + b"x" * LIMITS.header_bytes + b'"}'),
        "more than the 2097152 allowed; if you trust its sender, add --limit header_bytes=2097160 ",
    ),
    "A05 length not padded": (struct.pack("<Q", HEADER_END - 9) + VALID[8:], "multiple of 8"),
    "A06 header past the end": (struct.pack("<Q", len(VALID)) + VALID[8:], "inside its header"),
    "A07 a byte short": (VALID[:-1], "truncated"),
    "A07 half": (VALID[: HEADER_END + (len(VALID) - HEADER_END) // 2], "truncated"),
    "A07 in the header": (VALID[: HEADER_END // 2], "inside its header"),
    "A08 a byte more": (VALID + b"\0", "1 bytes after its last tensor"),
    "A09 hole": (lambda path: table_edit(lambda t: t["alpha"].update(data_offsets=[48, 52])), "a hole"),
    "A09 overlap": (lambda path: table_edit(lambda t: t["alpha"].update(data_offsets=[36, 40])), "an overlap"),
    "A09 reversed": (lambda path: table_edit(lambda t: t["alpha"].update(data_offsets=[40, 36])), "ends at 36"),
    "A09 negative": (lambda path: table_edit(lambda t: t["alpha"].update(data_offsets=[-4, 0])), "data_offsets"),
    "A09 not aligned": (
        framed(
            b'{"__metadata__":{"mapolicy":"{}"},"extractor.a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},'
            b'"extractor.b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}'
        )
        + b"\0" * 6,
        "does not divide",
    ),
    "A10 not utf-8": (header(b'{"\xff":1}'), "not UTF-8"),
    "A10 not json": (header(b"{nothing}"), "not JSON"),
    "A10 an array": (header(b"[1]"), "does not begin with '{'"),
    "A10 too deep": (header(b'{"a":' * 100_000), "deeper than 3"),
    "A10 too deep in arrays": (header(b'{"a":' + b"[" * 1_000_000), "deeper than 3"),
    "A10 quotes without end": (header(b'{"' + b'\\"' * 1_000_000), "not JSON"),
    "A10 nan": (header(b'{"a":NaN}'), "number NaN"),
    "A10 number of 5000 digits": (header(b'{"a":' + b"9" * 5000 + b"}"), "too many digits"),
    "A10 no metadata": (lambda path: table_edit(lambda t: t.pop("__metadata__")), "no metadata 'mapolicy'"),
    "A10 metadata is a number": (lambda path: table_edit(lambda t: t.update(__metadata__=7)), "no metadata"),
    "A10 two metadata keys": (
        lambda path: table_edit(lambda t: t["__metadata__"].update(format="pt")),
        "metadata 'format'",
    ),
    "A10 metadata value no text": (
        lambda path: table_edit(lambda t: t["__metadata__"].update(mapolicy={})),
        "expected a text",
    ),
    "A10 tensor entry a list": (lambda path: table_edit(lambda t: t.update(alpha=[])), "not just dtype"),
    "A10 tensor entry has more": (lambda path: table_edit(lambda t: t["alpha"].update(code="x")), "not just dtype"),
    "A10 half a million lists": (
        header(b'{"a":[' + b"[]," * 500_000 + b"[]]}"),
        "500004 lists, tables and keys, more than the 70004 allowed",
    ),
    "A11 tensor twice": (header(b'{"alpha":1,"alpha":2}'), "key 'alpha' twice"),
    "A11 tensor twice, escaped": (header(b'{"alpha":1,"\\u0061lpha":2}'), "key 'alpha' twice"),
    "A12 manifest key twice": (metadata('{"format":1,"format":1}'), "manifest has the key 'format' twice"),
    "A12 manifest too deep": (metadata('{"a":' * 10_000), "manifest is JSON nested deeper"),
    "A12 manifest an array": (metadata("[]"), "expected a JSON object"),
    "A12 manifest with spaces": (metadata(json.dumps(manifest_with({"digest": "0" * 64}))), "canonical"),
    "A13 200,000 empty tensors": (
        lambda path: table_edit(lambda t: t.update({f"extractor.{n}": EMPTY for n in range(200_000)})),
        "13492112 bytes, more than the 2097152 allowed; if you trust its sender, add --limit header_bytes=13492112 ",
    ),
    "A13 tensors over the cap": (
        lambda path: table_edit(lambda t: t.update({f"extractor.{n}": EMPTY for n in range(LIMITS.tensors)})),
        "more than the 70004 allowed; if you trust its sender, add --limit tensors=10012 ",
    ),
    "A13 an empty tensor": (
        lambda path: table_edit(lambda t: t["alpha"].update(shape=[0], data_offsets=[40, 40])),
        "sizes of 1 or more",
    ),
    "A14 sparse 200 GB": (sparse, "more than the 2147483648 allowed; if you trust its sender, add --limit file_bytes="),
    "A15 pickle": (lambda path: pickle.dumps(Payload(path.with_name("ran"))), "looks like a pickle"),
    "A15 pickle, protocol 0": (lambda path: pickle.dumps(Payload(path.with_name("ran")), 0), "looks like a text"),
    "A15 zip or pt": (lambda path: zip_of(pickle.dumps(Payload(path.with_name("ran")))), "looks like a zip"),
    "A15 gzip": (b"\x1f\x8b\x08" + bytes(20), "looks like a gzip"),
    "A15 html": (b"\n<!doctype html><p>Sign in</p>", "looks like an HTML"),
    "A15 json": (b'{"policy": "bundle", "size": 1}', "looks like JSON"),
    "A15 git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "A16 zip polyglot": (polyglot(), "zip archive as well"),
    "A16 zip appended": (VALID + zip_of(b"x"), "zip archive as well"),
    "A17 no format": (forge({"format": DELETE}), "no format version; this mapolicy reads format 1"),
    "A17 newer format": (forge({"format": 3}), "format 3; this mapolicy reads format 1 and 2"),
    "A17 format 2 with the parts of format 1": (
        forge({"format": 2}),
        "format is 2, its parts are those of format 1",
    ),
    "A17 format 1 with levels": (
        forge2({"format": 1, "verification": DELETE}),
        "format is 1, its parts are those of format 2",
    ),
    "A17 format 1 with a verification": (
        forge({"verification": verification()}),
        "format is 1, its parts are those of format 2",
    ),
    "A17 levels written as null": (forge({"levels": None}), "not spelled as mapolicy writes it"),
    "A17 verification written as null": (forge2({"verification": None}), "not spelled as mapolicy writes it"),
    "A17 both written as null": (
        forge({"format": 2, "levels": None, "verification": None}),
        "format is 2, its parts are those of format 1",
    ),
    "A17 format true": (forge({"format": True}), "format True; this mapolicy reads format 1"),
    "A18 tensor missing": (forge(sampler__means=DELETE), "'sampler.means' is missing"),
    "A18 levels missing": (forge2(sampler__log_levels=DELETE), "'sampler.log_levels' is missing"),
    "A18 levels that the manifest does not have": (
        forge(sampler__log_levels=raw(log_levels())),
        "'sampler.log_levels' is not one that this bundle's policy has",
    ),
    "A18 policy tensor missing": (forge(policy__output__bias=DELETE), "'policy.output.bias' is missing"),
    "A18 policy tensor extra": (forge(policy__extra__bias=raw([1.0])), "not one that this bundle's policy has"),
    "A18 branch that the policy has not": (
        forge({"policy.input": "features"}, policy__output__weight=raw(np.zeros((1, 100)))),
        "embedding_layer",
    ),
    "A19 policy of another width": (
        forge({"extractor.feature_width": 9}),
        "shape '(100, 8)', expected (100, 9)",
    ),
    "A19 p_jk of 13": (p_jk(uniform(13)), "expected (14, 14)"),
    "A19 levels of 13 operations": (
        forge2(sampler__log_levels=raw(log_levels()[:, :13])),
        "shape '(2, 13, 4)', expected (2, 14, 4)",
    ),
    "A19 levels of another number of stages": (forge2({"levels.stages": 3}), "shape '(2, 14, 4)', expected (3, 14, 4)"),
    "A19 levels of another number of bins": (
        forge2({"levels.edges": [-10.0, 0.0, 10.0]}),
        "shape '(2, 14, 4)', expected (2, 14, 2)",
    ),
    "A19 alpha a vector": (forge(alpha=raw([0.1, 0.1])), "expected ()"),
    "A19 alpha per layer a scalar": (forge({"alpha": "per-layer"}), "0 dimensions, expected 1"),
    "A19 split of another length": (forge(split__meta_validation=raw([1, 2], "I64")), "expected (4,)"),
    "A19 size that overflows": (
        lambda path: table_edit(lambda t: t["alpha"].update(shape=[2**32, 2**32])),
        "ends at 44, its shape and dtype say",
    ),
    "A19 negative size": (lambda path: table_edit(lambda t: t["alpha"].update(shape=[-1, -1])), "shape"),
    "A19 size true": (lambda path: table_edit(lambda t: t["alpha"].update(shape=[True])), "shape"),
    "A19 9 dimensions": (lambda path: table_edit(lambda t: t["alpha"].update(shape=[1] * 9)), "shape"),
    "A20 dtype F64": (lambda path: table_edit(lambda t: t["alpha"].update(dtype="F64")), "dtype 'F64'"),
    "A20 dtype F8": (lambda path: table_edit(lambda t: t["alpha"].update(dtype="F8_E4M3")), "dtype 'F8_E4M3'"),
    "A20 dtype a list": (lambda path: table_edit(lambda t: t["alpha"].update(dtype=["F32"])), "dtype a list"),
    "A20 policy in half precision": (forge(policy__output__bias=raw([0.0], "F16")), "dtype F16, expected F32"),
    "A20 extractor of another dtype": (forge({"extractor.dtype": "float16"}), "dtype F32, expected F16"),
    "A20 levels in half precision": (
        forge2(sampler__log_levels=raw(log_levels(), "F16")),
        "'sampler.log_levels' has dtype F16, expected F32",
    ),
    "A20 split of floats": (forge(split__meta_validation=raw(HELD_OUT)), "dtype F32, expected I64"),
    "A21 nan in the policy": (with_value("policy.feature_layer.weight", np.nan), "'policy.feature_layer.weight' has"),
    "A21 inf in the extractor": (with_value("extractor.conv.weight", np.inf), "'extractor.conv.weight' has NaN"),
    "A21 nan in the means": (with_value("sampler.means", np.nan), "'sampler.means' has NaN"),
    "A21 -inf in p_jk": (with_value("sampler.probabilities", -np.inf), "'sampler.probabilities' has NaN"),
    "A21 nan in the levels": (with_level(np.nan), "'sampler.log_levels' has NaN"),
    "A21 -inf in the levels": (with_level(-np.inf), "'sampler.log_levels' has NaN"),
    "A21 nan in alpha": (forge(alpha=raw(np.nan)), "'alpha' has NaN"),
    "A21 inf in a float16": (
        forge({"extractor.dtype": "float16"}, extractor__conv__weight=raw([1, np.inf], "F16")),
        "'extractor.conv.weight' has NaN",
    ),
    "A21 nan in a bfloat16": (
        forge({"extractor.dtype": "bfloat16"}, extractor__conv__weight=raw([1, np.nan], "BF16")),
        "'extractor.conv.weight' has NaN",
    ),
    "A21 negative variance": (
        forge(extractor__bn__running_var=raw([1.0, -1e-3])),
        "'extractor.bn.running_var' has the value -0.001, expected none below 0",
    ),
    "A21 negative variance in a bfloat16": (
        forge(
            {"extractor.dtype": "bfloat16"},
            extractor__conv__weight=DELETE,
            extractor__bn__running_var=raw([-2.0], "BF16"),
        ),
        "'extractor.bn.running_var' has the value -2,",
    ),
    "A21 negative count of batches": (
        forge(extractor__bn__num_batches_tracked=raw(-1, "I64")),
        "'extractor.bn.num_batches_tracked' has the value -1,",
    ),
    "A21 huge policy weight": (
        with_value("policy.output.weight", -3e38),
        "'policy.output.weight' has the value -3e+38, expected 1e+06 at most, either sign",
    ),
    "A22 p_jk negative": (p_jk(first_probability(-0.1)), "expected none below 0"),
    "A22 p_jk sums to 0.9": (p_jk(uniform() * 0.9), "sums to 0.9, expected 1"),
    "A22 p_jk sums to 7": (p_jk(uniform() * 7), "sums to 7, expected 1"),
    "A22 p_jk sums to 0": (p_jk(uniform() * 0), "sums to 0, expected 1"),
    "A22 p_jk sums to 1.001": (p_jk(uniform() * 1.001), "sums to 1.001, expected 1"),
    "A22 means over 1": (with_value("sampler.means", 1.5), "sampler.means has the value 1.5"),
    "A22 means below 0": (with_value("sampler.means", -0.5), "sampler.means has the value -0.5"),
    "A22 a level above 0": (with_level(0.5), "sampler.log_levels has the value 0.5, expected -1000 to 0"),
    "A22 a level below -1000": (with_level(-1001), "sampler.log_levels has the value -1001, expected -1000 to 0"),
    "A22 p_jk of other levels": (
        forge2(sampler__probabilities=raw(uniform())),
        "from the product of the operations' marginals of sampler.log_levels, expected 0.0001 at most",
    ),
    "A22 p_jk of another strength": (
        forge2({"levels.strength": 15.0, "verification": DELETE}),
        "from the product of the operations' marginals",
    ),
    "A22 p_jk of the first stages": (
        forge2(sampler__log_levels=raw(log_levels() * np.array([1, 0.2])[:, None, None])),
        "from the product of the operations' marginals",
    ),
    "A22 levels of an operation without levels": (
        with_level(-0.5, "Equalize"),
        "sampler.log_levels differs between levels of Equalize, which has none",
    ),
    "A22 directions of an operation without a direction": (
        with_level(-0.5, "Solarize"),
        "sampler.log_levels differs between directions of Solarize, which has none",
    ),
    "A19 draws that see the class without a table": (
        forge2({"levels.input": "class", "levels.context": 4}),
        "'sampler.sample_effects' is missing",
    ),
    "A19 draws that see features without directions": (
        forge2({"levels.input": "features", "levels.context": 3}, sampler__sample_effects=raw(effects(3))),
        "'sampler.feature_center' is missing",
    ),
    "A19 effects of another number of classes": (
        forge2({"levels.input": "class", "levels.context": 4}, sampler__sample_effects=raw(effects(3))),
        "shape '(3, 14, 4)', expected (4, 14, 4)",
    ),
    "A22 effects beyond 1000": (
        forge2({"levels.input": "class", "levels.context": 4}, sampler__sample_effects=raw(effects(4, 1e4))),
        "sampler.sample_effects has the value",
    ),
    "A21 nan in the effects": (
        forge2({"levels.input": "class", "levels.context": 4}, sampler__sample_effects=raw(effects(4, np.nan))),
        "'sampler.sample_effects' has NaN",
    ),
    "A22 effects of an operation without levels": (
        forge2({"levels.input": "class", "levels.context": 4}, sampler__sample_effects=raw(effects(4, shared=False))),
        "sampler.sample_effects differs between levels of",
    ),
    "A23 draws that see something else": (forge2({"levels.input": "labels", "levels.context": 2}), "levels.input"),
    "A23 draws that see nothing, with a context": (forge2({"levels.context": 2}), "input is 'none', context 2"),
    "A23 draws that see the class of other classes": (
        forge2({"levels.input": "class", "levels.context": 7}),
        "levels.context is 7, there are",
    ),
    "A23 more directions than features": (
        forge2({"levels.input": "features", "levels.context": 60_000}),
        "levels.context is 60000, there are",
    ),
    "A23 context negative": (forge2({"levels.input": "class", "levels.context": -1}), "levels.context: found -1"),
    "A23 no context, spelled out": (
        forge2({"levels.input": "none", "levels.context": 0}),
        "not spelled as mapolicy writes it",
    ),
    "A23 strength negative": (forge2({"levels.strength": -1.0}), "levels.strength: found -1.0, expected greater"),
    "A23 strength inf": (infinite_strength(), "number Infinity"),
    "A23 strength 1001": (forge2({"levels.strength": 1001.0}), "levels.strength: found 1001.0, expected less than or"),
    "A23 strength a whole number": (forge2({"levels.strength": 30}), "not spelled as mapolicy writes it"),
    "A23 stages 0": (forge2({"levels.stages": 0}), "levels.stages: found 0, expected greater than or equal to 1"),
    "A23 stages 101": (forge2({"levels.stages": 101}), "levels.stages: found 101, expected less than or equal to 100"),
    "A23 stages true": (forge2({"levels.stages": True}), "levels.stages: found True"),
    "A23 three bins": (
        forge2({"levels.edges": [-10.0, -3.0, 3.0, 10.0]}),
        "levels: 3 bins cannot be as many for each direction",
    ),
    "A23 edges of unequal width": (
        forge2({"levels.edges": [-10.0, -4.0, 0.0, 5.0, 10.0]}),
        "levels: edges are not those of bins of equal width from -10 to 10",
    ),
    "A23 two edges": (forge2({"levels.edges": [-10.0, 10.0]}), "levels.edges: found a list of 2, expected at least 3"),
    "A23 edges of 66 bins": (
        forge2({"levels.edges": [(n - 33) / 3.3 for n in range(67)]}),
        "levels.edges: found a list of 67, expected at most 65",
    ),
    "A23 edges of 500,000 bins": (forge2({"levels.edges": [0.0] * 500_000}), "levels.edges"),
    "A23 edges of texts": (forge2({"levels.edges": ["0"] * 5}), "levels.edges.0: found '0'"),
    **{
        f"A23 reading: {what}": (forge2({"reading": READING | {name: value}}), f"reading{says}")
        for what, name, value, says in (
            ("resize unknown", "resize", "stretch", ".resize: found 'stretch', expected crop or pad or squash"),
            ("resize a path", "resize", "../crop", ".resize: found '../crop'"),
            ("resize a number", "resize", 1, ".resize: found 1, expected a valid string"),
            ("interpolation unknown", "interpolation", "cubic", ".interpolation: found 'cubic'"),
            ("colour unknown", "alpha_background", "red", ".alpha_background: found 'red', expected white, black or"),
            ("colour with a line break", "alpha_background", "white\n", ".alpha_background: found 'white"),
            ("colour of 1 MB", "alpha_background", "#" * 2**20, ".alpha_background: found '###"),
            ("range of one", "value_range", [1.0], ".value_range: found a list of 1, expected at least 2"),
            ("range of three", "value_range", [1.0, 2.0, 3.0], ".value_range: found a"),
            ("range reversed", "value_range", [2.0, 1.0], ".value_range: found a"),
            ("range of nothing", "value_range", [1.0, 1.0], ".value_range: found a"),
            ("range beyond", "value_range", [0.0, 1e13], ".value_range.1: found 10000000000000.0, expected less"),
            ("range of texts", "value_range", ["0", "1"], ".value_range.0: found '0'"),
            ("range true", "value_range", True, ".value_range: found True"),
            ("another field", "more", 1, ".more is not a field of this format"),
        )
    },
    "A23 reading with an infinite range": (infinite_range(), "manifest has the number Infinity"),
    "A23 reading without resize": (
        forge2({"reading": {name: value for name, value in READING.items() if name != "resize"}}),
        "reading.resize is missing",
    ),
    "A23 reading that is the usual one": (forge2({"reading": USUAL}), "reading: its values are the usual ones"),
    "A23 reading written as null": (forge2({"reading": None}), "not spelled as mapolicy writes it"),
    "A23 reading in format 1": (
        forge({"reading": READING}),
        "format is 1, its parts are those of format 2",
    ),
    "A23 levels a list": (forge2({"levels": []}), "levels: found a list of 0"),
    "A23 levels with another field": (forge2({"levels.more": 1}), "levels.more is not a field of this format"),
    "A23 levels without a strength": (forge2({"levels.strength": DELETE}), "levels.strength is missing"),
    **{
        f"A23 verification: {what}": (forge2({f"verification.{path}": value}), says)
        for what, path, value, says in (
            ("no rows", "rows", [], "verification.rows: found a list of 0, expected at least 1"),
            ("33 rows", "rows", [ROW[3]] * 33, "verification.rows: found a list of 33, expected at most 32"),
            ("150 wrong rows", "rows", [0] * 150, "verification.rows.0: found 0"),
            ("no images", "images", 0, "verification.images: found 0, expected greater than or equal to 1"),
            ("fewer images than correct ones", "images", 79, "80 images of 79 are correct"),
            ("images true", "images", True, "verification.images: found True"),
            ("unseen a number", "unseen", 0, "verification.unseen: found 0"),
            ("epochs negative", "epochs", -1, "verification.epochs: found -1"),
            ("another field", "more", 1, "verification.more is not a field of this format"),
            ("no epochs", "epochs", DELETE, "verification.epochs is missing"),
        )
    },
    **{
        f"A23 row: {what}": (forge2({"verification.rows": [ROW[0] | change, *ROW[1:]]}), says)
        for what, change, says in (
            ("more correct alone than correct", {"only_this": 71}, "70 images of 100 are correct, 71 here alone"),
            ("more lost than the kept one has", {"only_kept": 81, "only_this": 71, "correct": 70}, "71 here alone"),
            ("counts that do not fit", {"only_kept": 13}, "of none: 80 correct less 13 and 2 more are not 70"),
            (
                "more images than there are",
                {"only_kept": 80, "only_this": 70, "correct": 70},
                "of none: 70 images more than 80 of 100 cannot be correct",
            ),
            ("correct negative", {"correct": -1}, "rows.0.correct: found -1"),
            ("only_kept a text", {"only_kept": "1"}, "rows.0.only_kept: found '1'"),
            ("strength negative", {"strength": -1.0}, "rows.0.strength: found -1.0"),
            ("strength 1001", {"strength": 1001.0}, "rows.0.strength: found 1001.0"),
            ("policy with a space", {"policy": "none; rm"}, "rows.0.policy: found 'none; rm', expected lower-case"),
            ("policy with ESC", {"policy": "\x1b[31m"}, "rows.0.policy: found"),
            ("policy with a line break", {"policy": "none\n"}, "rows.0.policy: found"),
            ("another field", {"more": 1}, "rows.0.more is not a field of this format"),
        )
    },
    "A23 verification of another strength": (
        forge2({"verification.rows": [row for row in ROW if row["strength"] != 30.0]}),
        "verification has no row of this policy, of strength 30",
    ),
    "A23 verification of learned draws alone, without levels": (
        forge({"format": 2, "verification": verification(ROWS[3:])}),
        "verification has no row of this policy, of strength 0",
    ),
    "A23 alpha 0": (forge(alpha=raw(0.0)), "alpha has the value 0, expected above 0"),
    "A23 alpha -1": (forge(alpha=raw(-1.0)), "alpha has the value -1, expected above 0"),
    "A23 alpha inf": (forge(alpha=raw(np.inf)), "'alpha' has NaN or infinite"),
    "A23 alpha 1e9": (forge(alpha=raw(1e9)), "alpha has the value 1e+09, expected above 0 and at most 1000"),
    "A23 one alpha of two": (forge({"alpha": "per-layer"}, alpha=raw([0.1, 0.0])), "alpha has the value 0"),
    "A24 operation unknown": (forge({"operations.names": ["Invert", *NAMES[1:]]}), "operation 'Invert' is unknown"),
    "A24 operation missing": (forge({"operations.names": NAMES[:-1]}), "13 operations, expected 14"),
    "A24 operation twice": (forge({"operations.names": [*NAMES, NAMES[0]]}), "15 operations, expected 14"),
    "A24 operations in another order": (
        forge({"operations.names": swap(NAMES, 2, 3)}),
        "operation 2 is Posterize, expected Rotate",
    ),
    "A24 space unknown": (forge({"operations.space": "mine"}), "space 'mine' is not one of"),
    "A24 range of another space": (
        forge({"operations.ranges.Rotate.at_ten": 135.0}),
        "range of Rotate in metaaugment-v1 is (0, 135, True), expected (0, 30, True)",
    ),
    "A24 range missing": (
        forge({"operations.ranges": {name: RANGES[name] for name in NAMES[1:]}}),
        "range of 'AutoContrast' is missing",
    ),
    "A24 index out of range": (
        forge(split__meta_validation=raw([1, 2, 3, IMAGES], "I64")),
        f"the index {IMAGES}, expected 0 to {IMAGES - 1}",
    ),
    "A24 index negative": (forge(split__meta_validation=raw([-1, 2, 3, 4], "I64")), "the index -1"),
    "A24 index twice": (forge(split__meta_validation=raw([1, 2, 2, 3], "I64")), "increasing"),
    "A24 indices not sorted": (forge(split__meta_validation=raw([1, 3, 2, 4], "I64")), "increasing"),
    "A25 name with ../": (renamed("extractor.../../etc/passwd"), "not a name that bundles have"),
    "A25 name with NUL": (renamed("extractor.a\0b"), "'extractor.a\\x00b', which is not"),
    "A25 name with a line break": (renamed("extractor.a\n"), "'extractor.a\\n', which is not"),
    "A25 name with ESC": (renamed("extractor.\x1b[31m"), "'extractor.\\x1b[31m', which is not"),
    "A25 name of 1 MB": (renamed("extractor." + "a" * 2**20), "not a name that bundles have"),
    "A25 name of another library": (renamed("model.weight"), "'model.weight', which is not"),
    "A26 ansi in the note": (forge({"note": "\x1b[2Jgone"}), "note: found '\\x1b[2Jgone', expected printable"),
    "A26 osc in the licence": (forge({"licence": "\x1b]0;title\x07"}), "licence: found"),
    "A26 bidi in a class name": (
        forge({"dataset.classes": ["a", "b", "c\u202e", "d"]}),
        "dataset.classes.2: found 'c\\u202e', expected printable text without '\\u202e'",
    ),
    "A26 c1 in a setting": (forge({"search.settings.proxy": "a\x9b"}), "search.settings.proxy: found"),
    "A26 line separator": (forge({"licence": "a\u2028b"}), "licence: found"),
    "A26 surrogate": (forge({"licence": "\ud800"}), "licence"),
    "A26 carriage return in the note": (forge({"note": "a\rb"}), "note: found"),
    "A26 key with ESC": (forge({"results.\x1b": 1.0}), "results.\\x1b"),
    "A26 note of 1 MB": (forge({"note": "a" * 2**20}), "note: found 'aaa"),
    "A26 field unknown": (forge({"host": "machine"}), "manifest host is not a field of this format"),
    "A26 field missing": (forge({"run.threads": DELETE}), "manifest run.threads is missing"),
    "A26 count a text": (forge({"dataset.counts.train": "24"}), "dataset.counts.train: found '24', expected a valid"),
    "A26 count true": (forge({"run.epochs": True}), "run.epochs: found True"),
    "A26 count of 400 digits": (forge({"run.epochs": 10**400}), "run.epochs: found 1000"),
    "A26 500,000 wrong classes": (forge({"dataset.classes": [0] * 500_000}), "dataset.classes"),
    "A26 100,000 wrong settings": (
        forge({"search.settings": {f"{n}A": 1 for n in range(100_000)}}),
        "lists, tables and keys, more than the 1000 allowed",
    ),
    "A26 100,000 settings": (
        forge({"search.settings": {f"a{n}": 1 for n in range(100_000)}}),
        "lists, tables and keys, more than the 1000 allowed",
    ),
    "A26 100,000 wrong results": (
        forge({"results": {f"a{n}": "x" for n in range(100_000)}}),
        "lists, tables and keys, more than the 1000 allowed",
    ),
    "A26 100,000 ranges": (
        forge({"operations.ranges": {f"a{n}": [] for n in range(100_000)}}),
        "lists, tables and keys, more than the 1000 allowed",
    ),
    "A26 100,000 operations": (forge({"operations.names": ["x"] * 100_000}), "names"),
    "A26 500,000 wrong operations": (forge({"operations.names": [0] * 500_000}), "operations.names.0: found 0"),
    "A26 100,000 fields": (
        forge({f"a{n}": 1 for n in range(100_000)}),
        "lists, tables and keys, more than the 1000 allowed",
    ),
    "A26 100,000 arguments": (
        forge({"extractor.model_args": {f"a{n}": 1 for n in range(100_000)}}),
        "lists, tables and keys, more than the 1000 allowed",
    ),
    "A26 500,000 means": (forge({"input.mean": [2] * 500_000}), "input.mean"),
    "A26 used more than there is": (forge({"dataset.counts.train": 38}), "42 images used"),
    "A26 class twice": (forge({"dataset.classes": ["a", "b", "c", "a"]}), "each name once ('a' is there again)"),
    "A26 one class": (forge({"dataset.classes": ["a"]}), "dataset.classes: found a list of 1"),
    "A26 more training images than the split": (
        forge({"dataset.counts.train": 25}),
        "counts: train is 25, expected 24 (the split of 4 classes)",
    ),
    "A26 fewer meta-validation images than classes": (
        forge({"dataset.counts.meta_validation": 3, "dataset.split.validation_per_class": 0.1}),
        "counts: meta_validation is 3, expected at least 4",
    ),
    "A26 half an image of each class": (forge({"dataset.split.train_per_class": 6.5}), "expected a whole number, or a"),
    "A26 accuracy of 101 per cent": (forge({"results": {"validation_top1": 101.0}}), "is 101, expected 0 to 100"),
    "A26 mean for 3 of 1 channels": (forge({"input.mean": [0.5] * 3}), "mean has 3 numbers, expected 1"),
    "A26 std 0": (forge({"input.std": [0.0]}), "input.std.0: found 0.0"),
    "A26 embedding of another kind": (forge({"embedding.offset": 0.0}), "embedding.offset: found 0.0, expected 1.0"),
    "A26 data set a path": (forge({"dataset.name": "folder:/home/me/images"}), "not a path"),
    "A26 data set above": (forge({"dataset.name": "hfds/../../x"}), "not a path"),
    "A26 data set the folder above": (forge({"dataset.name": "folder:.."}), "not a path"),
    "A26 data set a home": (forge({"dataset.name": "folder:~root"}), "not a path"),
    "A26 data set a path of Windows": (forge({"dataset.name": "folder:images\\mine"}), "not a path"),
    "A26 bidi in the data set": (forge({"dataset.name": "folder:a\u202eb"}), "not a path"),
    "A26 settings say another thing": (forge({"search.settings.proxy": "resnet18"}), "proxy 'resnet18', the rest"),
    "A26 settings of the machine": (forge({"search.settings.data_dir": "data"}), "data_dir, which says where"),
    "A26 setting a list": (forge({"search.settings.x": [1]}), "search.settings.x: found a list of 1"),
    "A26 no accuracy": (forge({"results": {}}), "no validation_top1"),
    "A26 images of 4096 x 4096": (
        forge({"input.size": 4096}),
        "input.size 4096 means 16777216 pixels, more than the 1048576 allowed; if you trust its sender, add --limit",
    ),
    "A27 arch with a scheme": (forge({"extractor.arch": "hf-hub:evil/model"}), "expected a timm name"),
    "A27 arch with a scheme in capitals": (forge({"extractor.arch": "HF-HUB:evil/model"}), "expected a timm name"),
    "A27 arch a folder": (forge({"extractor.arch": "local-dir:/etc"}), "expected a timm name"),
    "A27 arch a path": (forge({"extractor.arch": "../model"}), "expected a timm name"),
    "A27 arch with a line break": (forge({"extractor.arch": "test_resnet\n"}), "expected a timm name"),
    "A27 arch with a tag": (forge({"extractor.arch": "test_resnet.r160_in1k"}), "expected a timm name"),
    "A27 argument pretrained": (forge({"extractor.model_args": {"pretrained": True}}), "argument 'pretrained'"),
    "A27 argument checkpoint_path": (
        forge({"extractor.model_args": {"checkpoint_path": "/etc/passwd"}}),
        "argument 'checkpoint_path' is not one that a bundle",
    ),
    "A27 argument of another type": (forge({"extractor.model_args": {"img_size": "8"}}), "img_size is '8'"),
    "A27 argument out of range": (forge({"extractor.model_args": {"img_size": 10**9}}), "img_size is 1000000000"),
    "A27 called in another way": (forge({"extractor.call": "os.system"}), "extractor.call: found 'os.system'"),
    "A37 digest of another content": (forge({"digest": "0" * 64}), "it was damaged or edited"),
    "A37 digest no digest": (forge({"digest": "x"}), "64 lower-case hexadecimal digits"),
    "A37 digest missing": (metadata(spelled(manifest_with())), "manifest digest is missing"),
    "A37 number changed": (
        VALID[:-1] + bytes([VALID[-1] ^ 1]),
        "it was damaged or edited",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, says = HOSTILE[case]
    path = tmp_path / "x"
    content = make(path) if callable(make) else make
    if content is not None:
        path.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    size = path.stat().st_size if path.is_file() else 0
    memory = 2 * size + HEADER_MEMORY if size < LIMITS.file_bytes else None
    assert says in rejected(read_bundle, path, memory)
    assert sorted(tmp_path.iterdir()) == before, "nothing was written, no payload ran"


@pytest.mark.parametrize(
    ("beginning", "says"),
    [
        (b"", "does not begin with"),
        (VALID, "bytes after its last tensor"),
        (struct.pack("<Q", 2**40) + VALID[8:], "says its header has"),
        (framed(b'{"a":'), "header "),
    ],
)
def test_a_large_file_is_refused_by_its_header(beginning: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(beginning)
    os.truncate(path, LIMITS.file_bytes - 1)
    tracemalloc.start()
    try:
        for open_it in (read_bundle, open_bundle, DatasetPolicy.load):
            with pytest.raises(InputError, match=says):
                open_it(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < HEADER_MEMORY, "two gigabytes that need not be read"
