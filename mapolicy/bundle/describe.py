"""A searched bundle's contents as plain values for `inspect`; builds no network and imports no torch."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .findings import Table, levels_document, verification_document
from .format import ALPHA, LOG_LEVELS, MEANS, PROBABILITIES, SAMPLE_EFFECTS
from .manifest import Manifest
from .safetensors_reader import RawTensor

LISTED = 5
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # not counted as parameters


def log_levels(tensors: Mapping[str, RawTensor]) -> Table | None:
    """What an alignment sampler learned, float64 [stages, K, bins]; None for another sampler."""
    return np.asarray(tensors[LOG_LEVELS].array(), np.float64) if LOG_LEVELS in tensors else None


def sample_effects(tensors: Mapping[str, RawTensor]) -> Table | None:
    """How images change these levels, float64 [D, K, bins]; None for draws that do not see images."""
    return np.asarray(tensors[SAMPLE_EFFECTS].array(), np.float64) if SAMPLE_EFFECTS in tensors else None


def describe(manifest: Manifest, tensors: Mapping[str, RawTensor], size: int) -> dict[str, Any]:
    """A bundle's manifest, probabilities and sizes as JSON-compatible values.

    Args:
        manifest, tensors: as `format.parse_bundle` returns them.
        size: of the file in bytes.
    """
    names = manifest.operations.names
    probabilities = tensors[PROBABILITIES].array().astype(np.float64)
    means = tensors[MEANS].array()
    order = np.argsort(-probabilities, axis=None, kind="stable")

    def entries(positions: Any) -> list[dict[str, Any]]:
        pairs = (divmod(int(position), len(names)) for position in positions)
        return [
            {
                "first": names[j],
                "second": names[k],
                "probability": float(probabilities[j, k]),
                "mean_output": float(means[j, k]),
            }
            for j, k in pairs
        ]

    positive = probabilities[probabilities > 0]
    return {
        "digest": manifest.digest,
        "format": manifest.format,
        "dataset": manifest.dataset.model_dump(),
        "input": manifest.input.model_dump(),
        "operations": manifest.operations.model_dump(),
        "extractor": manifest.extractor.model_dump(),
        "search": manifest.search.model_dump()["settings"],
        "run": manifest.run.model_dump(),
        "results": manifest.results,
        "validation_top1": manifest.results["validation_top1"],
        "alpha": tensors[ALPHA].array().reshape(-1).tolist(),
        "entropy": float(-(positive * np.log(positive)).sum() / math.log(probabilities.size)),
        "furthest": float(np.abs(probabilities * probabilities.size - 1).max()),
        "likeliest": entries(order[:LISTED]),
        "unlikeliest": entries(order[::-1][:LISTED]),
        "bytes": size,
        "parameters": {
            part: sum(
                math.prod(tensor.shape)
                for name, tensor in tensors.items()
                if name.startswith(f"{part}.") and not name.endswith(BUFFERS)
            )
            for part in ("extractor", "policy")
        },
        "equal_weights": manifest.equal_weights,
        "levels": levels_document(manifest, log_levels(tensors), sample_effects(tensors)),
        "verification": verification_document(manifest),
        "versions": manifest.versions,
        "licence": manifest.licence,
        "note": manifest.note,
    }
