"""Small bundles for tests: valid ones, and forged ones that no writer of ours would make. Needs no torch."""

import copy
import hashlib
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np

from mapolicy.bundle.manifest import EXTRACTOR_CALL, ManifestDraft, Operations, draft_manifest
from mapolicy.bundle.safetensors_reader import RawTensor
from mapolicy.transforms.space import OPERATION_NAMES, SPACES

FEATURE_WIDTH = 8
CLASSES = 4
IMAGES = 40
HELD_OUT = (3, 7, 11, 19)
DELETE = object()


def raw(values, dtype="F32") -> RawTensor:
    """A tensor of these numbers; BF16 takes the upper halves of the float32 numbers."""
    kinds = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "BF16": "<f4"}
    array = np.asarray(values, dtype=kinds[dtype])
    content = (array.view("<u4") >> 16).astype("<u2") if dtype == "BF16" else array
    return RawTensor(dtype, array.shape, memoryview(content.tobytes()))


def draft(**changes) -> ManifestDraft:
    """The manifest of a digits-like search; `changes` replace whole parts."""
    parts = {
        "versions": {"python": "3.11.7", "mapolicy": "0.1.0"},
        "operations": Operations.of("metaaugment-v1", "mean"),
        "policy": {"hidden": 100, "input": "both"},
        "alpha": "scalar",
        "extractor": {
            "arch": "test_resnet",
            "model_args": {},
            "feature_width": FEATURE_WIDTH,
            "dtype": "float32",
            "call": EXTRACTOR_CALL,
        },
        "input": {
            "size": 8,
            "channels": 1,
            "mean": [0.25],
            "std": [0.5],
            "base_augmentation": "none",
            "cutout": 0,
        },
        "dataset": {
            "name": "digits",
            "classes": ["zero", "one", "two", "three"],
            "counts": {"images": IMAGES, "train": 24, "meta_validation": len(HELD_OUT)},
            "fingerprint": "0123456789abcdef" * 4,
            "split": {"seed": 0, "train_per_class": 6, "validation_per_class": 1, "test_per_class": 3},
        },
        "search": {"settings": {"proxy": "test_resnet", "epochs": 2, "learning_rate": 0.1, "decay_all": True}},
        "run": {"epochs": 200, "iterations": 600, "threads": 1, "device": "cpu"},
        "results": {"validation_top1": 75.0},
        "licence": "CC0-1.0",
        "note": "A small one.\nFor tests: [/bold] <script>alert(1)</script>",
    }
    return draft_manifest(**parts | changes)


LEVEL_BINS, STAGES, STRENGTH = 4, 2, 30.0
EDGES = [-10.0, -5.0, 0.0, 5.0, 10.0]
LEVELS = {"stages": STAGES, "edges": EDGES, "strength": STRENGTH}
# Policy, strength, images that it is right about, that the kept one alone is right about, that it alone is.
ROWS = [
    ("none", None, 70, 12, 2),
    ("uniform", None, 76, 9, 5),
    ("trivialaugment", None, 72, 11, 3),
    ("learned", 30.0, 80, 0, 0),
    ("learned", 15.0, 79, 3, 2),
]
# Of a search whose uniform draws did best.
UNIFORM_ROWS = [("none", None, 70, 8, 2), ("uniform", None, 76, 0, 0), ("trivialaugment", None, 72, 6, 2)]


def verification(rows=ROWS, **changes) -> dict:
    """A check of a search, whose kept policy has the strength of `LEVELS`."""
    fields = ("policy", "strength", "correct", "only_kept", "only_this")
    found = {"images": 100, "unseen": False, "epochs": 2, "rows": [dict(zip(fields, row, strict=True)) for row in rows]}
    return found | changes


def draft2(**changes) -> ManifestDraft:
    """A draft of format 2: with levels and a verification."""
    return draft(**{"levels": LEVELS, "verification": verification()} | changes)


def log_levels(space="metaaugment-v1"):
    """What an alignment sampler may have learned, float [STAGES, 14, LEVEL_BINS]: Rotate harms beyond level 5."""
    table = -np.random.default_rng(1).random((STAGES, 14, LEVEL_BINS)) / 100
    table[:, OPERATION_NAMES.index("Rotate")] = [-0.2, 0, 0, -0.1]
    for row, spread in enumerate(SPACES[space].ranges.values()):
        if spread is None:
            table[:, row] = table[:, row, :1]
        elif not spread.signed:
            table[:, row] = table[:, row, ::-1] / 2 + table[:, row] / 2
    return table.astype(np.float32)


def product_of_marginals(table, strength=STRENGTH):
    """p_jk of these levels, written a second time."""
    cells = np.exp(strength * table[len(table) // 2 :].astype(np.float64).mean(0))
    operations = cells.sum(1) / cells.sum()
    return np.outer(operations, operations)


def small_tensors2(table=None, strength=STRENGTH) -> dict[str, RawTensor]:
    """Tensors that fit `draft2()`."""
    table = log_levels() if table is None else table
    drawn = {"sampler.log_levels": raw(table), "sampler.probabilities": raw(product_of_marginals(table, strength))}
    return small_tensors() | drawn


def forge2(changes=None, **replaced) -> bytes:
    """A file of format 2 made by hand."""
    return forge(changes, small_tensors2(), draft2(), **replaced)


def small_tensors(feature_width=FEATURE_WIDTH) -> dict[str, RawTensor]:
    """Tensors that fit `draft()`; the extractor's are of no arch."""
    draw = np.random.default_rng(0)
    values = draw.random((14, 14))
    return {
        "policy.feature_layer.weight": raw(draw.normal(size=(100, feature_width))),
        "policy.feature_layer.bias": raw(draw.normal(size=100)),
        "policy.embedding_layer.weight": raw(draw.normal(size=(100, 28))),
        "policy.embedding_layer.bias": raw(draw.normal(size=100)),
        "policy.output.weight": raw(draw.normal(size=(1, 200))),
        "policy.output.bias": raw([0.0]),
        "alpha": raw(0.01),
        "sampler.probabilities": raw(values / values.sum()),
        "sampler.means": raw(values),
        "split.meta_validation": raw(HELD_OUT, "I64"),
        "extractor.conv.weight": raw(draw.normal(size=(8, 1, 3, 3))),
        "extractor.bn.num_batches_tracked": raw(6, "I64"),
    }


def manifest_with(changes=None, base=None) -> dict:
    """A manifest as plain JSON values; `changes` by dotted path, DELETE removes."""
    manifest = json.loads((base or draft()).content())
    for path, value in (changes or {}).items():
        *folders, last = path.split(".")
        part = manifest
        for folder in folders:
            part = part[folder]
        if value is DELETE:
            del part[last]
        else:
            part[last] = copy.deepcopy(value)
    return manifest


def spelled(value) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def forge(changes=None, tensors=None, base=None, **replaced) -> bytes:
    """A bundle with a right digest, whatever stands in it. `replaced`: tensors by name with __ for the dot."""
    tensors = dict(small_tensors() if tensors is None else tensors)
    for name, tensor in replaced.items():
        name = name.replace("__", ".")
        if tensor is DELETE:
            del tensors[name]
        else:
            tensors[name] = tensor
    manifest = manifest_with(changes, base)
    # The rule of DESIGN.md written a second time, so that the library's own is checked against it.
    digest = hashlib.sha256(spelled({k: v for k, v in manifest.items() if k != "digest"}).encode() + b"\n")
    for name, tensor in sorted(tensors.items()):
        digest.update(spelled([name, tensor.dtype, list(tensor.shape)]).encode() + b"\n" + tensor.data)
    manifest.setdefault("digest", digest.hexdigest())
    return container({"mapolicy": spelled(manifest)}, tensors)


def container(metadata, tensors, edit=None, tail=b"") -> bytes:
    """The safetensors layout; `edit` changes the header's table before it is written."""
    table, end = {"__metadata__": metadata}, 0
    order = {"I64": 0, "F32": 1}
    ordered = sorted(tensors, key=lambda name: (order.get(tensors[name].dtype, 2), name))
    for name in ordered:
        begin, end = end, end + len(tensors[name].data)
        table[name] = {"data_offsets": [begin, end], "dtype": tensors[name].dtype, "shape": list(tensors[name].shape)}
    if edit is not None:
        edit(table)
    text = json.dumps(table, separators=(",", ":"))
    return framed(text.encode()) + b"".join(tensors[name].data for name in ordered) + tail


def framed(header: bytes) -> bytes:
    """The header with its length before it, padded."""
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


class Payload:
    """What an attacker pickles: unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def zip_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return file.getvalue()
