"""A second reader of bundles, written from docs/bundle-format.md alone, without mapolicy, torch or safetensors."""

import hashlib
import json
import math
import struct
from pathlib import Path

import numpy as np

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}


def canonical(value) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def without_repeats(pairs):
    found = dict(pairs)
    assert len(found) == len(pairs), "a key is there twice"
    return found


def read(path: Path):
    """Manifest and tensors, the container and the digest checked."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length], object_pairs_hook=without_repeats)
    metadata = header.pop("__metadata__")
    assert list(metadata) == ["mapolicy"]
    manifest = json.loads(metadata["mapolicy"], object_pairs_hook=without_repeats)
    assert canonical(manifest) == metadata["mapolicy"]
    assert manifest["format"] in (1, 2), f"format {manifest['format']}, this reads 1 and 2"
    assert (manifest["format"] == 2) == bool({"levels", "verification", "reading"} & set(manifest))
    data, end, tensors = content[8 + length :], 0, {}
    digest = hashlib.sha256(canonical({k: v for k, v in manifest.items() if k != "digest"}).encode() + b"\n")
    for name, entry in header.items():
        dtype, (begin, stop) = np.dtype(DTYPES[entry["dtype"]]), entry["data_offsets"]
        assert begin == end
        end = begin + math.prod(entry["shape"]) * dtype.itemsize
        assert stop == end
        numbers = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"])
        tensors[name] = (numbers.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else numbers
    assert end == len(data)
    for name in sorted(header):
        entry = header[name]
        begin, stop = entry["data_offsets"]
        digest.update(canonical([name, entry["dtype"], entry["shape"]]).encode() + b"\n" + data[begin:stop])
    assert digest.hexdigest() == manifest["digest"], "damaged or edited"
    return manifest, tensors


def embedding(manifest, first: int, level1: float, second: int, level2: float):
    """A transformation as the policy network sees it; operations by position, levels 0 to 10."""
    rule, names = manifest["embedding"], manifest["operations"]["names"]
    found = np.full(rule["width"], rule["absent"], dtype=np.float32)
    for column, operation, level in ((2 * first, first, level1), (2 * second + 1, second, level2)):
        plain = manifest["operations"]["ranges"][names[operation]] is None
        found[column] = rule["without_magnitude"] if plain else level + rule["offset"]
    return found


def level_probabilities(manifest, tensors):
    """q of format 2, [K, bins]: how often an operation is drawn with a level of each bin."""
    table = tensors["sampler.log_levels"].astype(np.float64)
    cells = np.exp(manifest["levels"]["strength"] * table[len(table) // 2 :].mean(0))
    return cells / cells.sum()


def weights(tensors, features, embeddings):
    """Raw policy outputs and the weights P_i of a batch: features [n, F], embeddings [n, 2K]."""
    branches = []
    for layer, seen in (("feature_layer", features), ("embedding_layer", embeddings)):
        if f"policy.{layer}.weight" in tensors:
            branch = seen @ tensors[f"policy.{layer}.weight"].T + tensors[f"policy.{layer}.bias"]
            branches.append(np.maximum(branch, 0))
    out = np.concatenate(branches, axis=1) @ tensors["policy.output.weight"].T + tensors["policy.output.bias"]
    raw = 1 / (1 + np.exp(-out[:, 0]))
    return raw, raw / raw.sum()
