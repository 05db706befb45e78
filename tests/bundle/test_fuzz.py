"""Bundles changed at random: each loads, or is refused in one line, within bounded memory. Nothing else ever happens.

The quick run is part of the suite; the long one: `pytest -m slow tests/bundle/test_fuzz.py`.
"""

import hashlib
import json
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapolicy.bundle import canonical_json
from mapolicy.bundle.load import parse_any
from mapolicy.bundle.safetensors_reader import RawTensor
from mapolicy.bundle.source import Fetched
from mapolicy.errors import InputError
from mapolicy.policy.policy_bundle import PolicyBundle
from mapolicy.transforms.space import OPERATION_NAMES
from tests.bundle.test_dataset_level import changed, forged
from tests.helpers.bundle_factory import (
    container,
    draft,
    draft2,
    forge,
    framed,
    manifest_with,
    raw,
    small_tensors,
    small_tensors2,
    spelled,
)
from tests.helpers.make_bundles import DATA
from tests.helpers.rejection import check_line

QUICK, LONG = 60, 5_000
HEADER_MEMORY = 8 * 2**20  # of small files; what a header of the largest size takes is tested with the hostile files

REAL = (DATA / "format-1-scalar.safetensors").read_bytes()
REAL_HEADER = 8 + struct.unpack_from("<Q", REAL)[0]
FORGED = forge()
LISTED = forged({})

# What foreign JSON may hold anywhere.
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2**31, 2**40, 2**63, 2**64, 10**30, 0.0, -0.0, 1.0, 1e-310, 1e308, 0.1]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "\x1b[31m", "\u202e", "\ud800", "hf-hub:x/y", "../x", "F32", "float16", *OPERATION_NAMES[:3]]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def check(content: bytes) -> str:
    """Loads or is refused as it should be; the refusal, or nothing."""
    tracemalloc.start()
    try:
        parse_any(Fetched(content, "fuzzed", ""))
        line = ""
    except InputError as problem:
        line = str(problem)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= 2 * len(content) + HEADER_MEMORY
    check_line(line)
    return line


@st.composite
def changed_bytes(draw: st.DrawFn, real: bytes = REAL, header: int = REAL_HEADER) -> bytes:
    """A real bundle with bytes replaced, removed, inserted or cut off; half of the changes hit the header."""
    content = bytearray(real)
    for _ in range(draw(st.integers(1, 4))):
        end = header if draw(st.booleans()) else len(content)
        place = draw(st.integers(0, max(0, min(end, len(content)) - 1)))
        piece = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b'"', b"{", b"[", b"]", b"}", b",", b"\\", b"0"]))
        )
        match draw(st.sampled_from(["replace", "insert", "remove", "cut", "repeat"])):
            case "replace":
                content[place : place + len(piece)] = piece
            case "insert":
                content[place:place] = piece
            case "remove":
                del content[place : place + draw(st.integers(1, 64))]
            case "cut":
                del content[place:]
            case "repeat":
                content[place:place] = content[place : place + draw(st.integers(1, 256))]
    return bytes(content)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every path into a JSON value."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found += places(part, (*path, key))
    return found


def edited(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three of its parts replaced, removed, added, renamed or repeated."""
    for _ in range(draw(st.integers(1, 3))):
        inner = places(value)[1:]
        if not inner:
            return draw(values)
        *folders, last = inner[draw(st.integers(0, len(inner) - 1))]
        part = value
        for folder in folders:
            part = part[folder]
        match draw(st.sampled_from(["replace", "remove", "add", "nest"])):
            case "replace":
                part[last] = draw(values)
            case "remove":
                del part[last]
            case "add" if isinstance(part, dict):
                part[draw(st.text(max_size=8))] = draw(values)
            case "add":
                part.insert(last, draw(values))
            case "nest":
                part[last] = [part[last]] if draw(st.booleans()) else {"a": part[last]}
    return value


@st.composite
def changed_header(draw: st.DrawFn, real: bytes = FORGED) -> bytes:
    """The container's table edited as JSON; the data as it was, or one tensor's entry gone with its bytes."""
    table = json.loads(real[8 : 8 + struct.unpack_from("<Q", real)[0]])
    data = real[8 + struct.unpack_from("<Q", real)[0] :]
    text = json.dumps(edited(draw, table)).encode()
    if draw(st.booleans()):
        text = text.replace(b": ", draw(st.sampled_from([b":", b" : ", b":\n"])))
    return framed(text) + data


@st.composite
def changed_manifest(draw: st.DrawFn, version: int = 1) -> bytes:
    """The manifest edited as JSON, then sealed with a right digest: only the checks of the fields stand in the way."""
    base, tensors = (draft(), small_tensors()) if version == 1 else (draft2(), small_tensors2())
    found = edited(draw, manifest_with(base=base))
    if not isinstance(found, dict):
        return container({"mapolicy": spelled(found)}, tensors)
    found.pop("digest", None)
    try:
        text = canonical_json.canonical(found)
    except ValueError:  # NaN: as other writers spell it
        return container({"mapolicy": json.dumps(found)}, tensors)
    digest = hashlib.sha256(text.encode() + b"\n")
    for name, tensor in sorted(tensors.items()):
        digest.update(spelled([name, tensor.dtype, list(tensor.shape)]).encode() + b"\n" + tensor.data)
    return container({"mapolicy": spelled({**found, "digest": digest.hexdigest()})}, tensors)


@st.composite
def changed_list(draw: st.DrawFn) -> bytes:
    """A dataset-level policy's manifest edited as JSON, then sealed with a right digest; now and then with a tensor."""
    found = edited(draw, changed({}))
    tensors = {"alpha": raw([1.0])} if draw(st.integers(0, 19)) == 0 else {}
    if not isinstance(found, dict):
        return container({"mapolicy": json.dumps(found)}, tensors)
    found.pop("digest", None)
    try:
        text = canonical_json.canonical(found)
    except ValueError:  # NaN: as other writers spell it
        return container({"mapolicy": json.dumps(found)}, tensors)
    digest = hashlib.sha256(text.encode() + b"\n").hexdigest()
    return container({"mapolicy": spelled({**found, "digest": digest})}, tensors)


@st.composite
def changed_tensors(draw: st.DrawFn, version: int = 1) -> bytes:
    """Numbers, dtypes, shapes and names of tensors changed, under a right digest."""
    base, tensors = (draft(), small_tensors()) if version == 1 else (draft2(), small_tensors2())
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors[name]
        match draw(st.sampled_from(["number", "bits", "dtype", "shape", "rename", "remove", "zeros"])):
            case "number":
                numbers = np.array(tensor.array())
                special = (
                    [np.nan, np.inf, -np.inf, 3.4e38, 1e-45, -0.0, -1.0, 2.0] if numbers.dtype.kind == "f" else [0, 7]
                )
                with np.errstate(over="ignore"):  # in half precision
                    numbers.reshape(-1)[draw(st.integers(0, numbers.size - 1))] = draw(st.sampled_from(special))
                tensors[name] = RawTensor(tensor.dtype, tensor.shape, memoryview(numbers.tobytes()))
            case "bits":
                content = bytearray(tensor.data)
                content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
                tensors[name] = RawTensor(tensor.dtype, tensor.shape, memoryview(bytes(content)))
            case "dtype":
                tensors[name] = raw(np.zeros(tensor.shape), draw(st.sampled_from(["F16", "BF16", "I64", "F32"])))
            case "shape":
                tensors[name] = raw(np.ones(draw(st.lists(st.integers(1, 5), max_size=9))), tensor.dtype)
            case "rename":
                tensors[draw(st.sampled_from(["extractor.a", "policy.a", "alpha", "x"]) | st.text(max_size=9))] = (
                    tensors.pop(name)
                )
            case "remove":
                del tensors[name]
            case "zeros":
                tensors[name] = raw(np.zeros(tensor.shape), tensor.dtype)
        if not tensors:
            break
    return forge(tensors=tensors, base=base)


KINDS: dict[str, Callable[[], st.SearchStrategy[bytes]]] = {
    "noise": lambda: st.binary(max_size=400),
    "noise as a header": lambda: st.binary(max_size=400).map(lambda text: framed(b"{" + text)),
    "bytes": changed_bytes,
    "header": changed_header,
    "manifest": changed_manifest,
    "tensors": changed_tensors,
    "manifest of format 2": lambda: changed_manifest(2),
    "tensors of format 2": lambda: changed_tensors(2),
    "dataset-level bytes": lambda: changed_bytes(LISTED, len(LISTED)),
    "dataset-level header": lambda: changed_header(LISTED),
    "dataset-level manifest": changed_list,
}


def fuzz(kind: str, examples: int, note: Callable[[str], None]) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == QUICK,
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[kind]())
    def never_anything_else(content: bytes) -> None:
        note(check(content))

    never_anything_else()


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bundles_load_or_are_refused(kind: str) -> None:
    lines: list[str] = []
    fuzz(kind, QUICK, lines.append)
    assert len(lines) >= QUICK
    distinct = {line.removeprefix("fuzzed: ")[:30] for line in lines if line}
    assert len(distinct) >= (2 if "noise" in kind else 9), "the changes reach many checks"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_changed_bundles_load_or_are_refused_at_length(kind: str) -> None:
    lines: list[str] = []
    fuzz(kind, LONG, lines.append)
    print(f"{kind}: {len(lines)} files, {lines.count('')} load, {len({line[:40] for line in lines})} kinds of refusal")


def test_a_changed_extractor_loads_and_builds_or_is_refused() -> None:
    """Numbers of a real extractor, under a right digest: what passes the checks can be built, or is refused then."""
    draw, real = np.random.default_rng(0), PolicyBundle.from_bytes(REAL)
    outcomes = set()
    for value in (0.0, 1e-45, -1.0, 1e4, 1e20, 3e38):
        for name in draw.choice([name for name in real.tensors if name.startswith("extractor.")], 8):
            tensors = {key: tensor.clone() for key, tensor in real.tensors.items()}
            tensors[str(name)].fill_(value)
            changed = PolicyBundle(real.manifest, tensors)
            loaded = PolicyBundle.from_bytes(changed.to_bytes())
            try:
                loaded.build_extractor(torch.device("cpu"))
                outcomes.add("built")
            except InputError as problem:
                outcomes.add(" ".join(problem.why.split()[2:6]))
    assert outcomes == {"built", "gives plain images a"}
