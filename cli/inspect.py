"""`mapolicy inspect`: what a bundle says, without building its networks (and without importing torch)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..bundle_format import ALPHA, MEANS, PROBABILITIES
from ..manifest import Manifest
from ..published import DatasetPolicy, Step, has_magnitude
from ..tensor_container import RawTensor
from . import display, options

LISTED = 5
LISTED_SUB_POLICIES = 30
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # no parameters


def inspect(
    bundle: options.BundleArgument,
    expect_digest: options.ExpectDigest = None,
    limits: options.BundleLimits = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Check a bundle's file and show where it came from and what it learned.

    Example: mapolicy inspect artifacts/digits.safetensors
    """
    opened = options.opened(bundle, expect_digest, limits)
    policy, fetched = opened.policy, opened.fetched
    if isinstance(policy, DatasetPolicy):
        _inspect_list(policy, len(fetched.content), as_json)
        return
    manifest = policy.manifest
    facts = {"bundle": fetched.origin, **describe(manifest, policy.tensors, len(fetched.content))}
    if as_json:
        display.print_json(facts)
        return
    data, split = facts["dataset"], manifest.dataset.counts
    lines = {
        "bundle": fetched.origin,
        "digest": manifest.digest,
        "data set": f"{data['name']}, {len(data['classes'])} classes, "
        f"{split.train} training and {split.meta_validation} meta-validation images",
        "fingerprint": manifest.dataset.fingerprint,
        "input": f"{manifest.input.channels} x {manifest.input.size} x {manifest.input.size}, "
        f"base augmentation {manifest.input.base_augmentation}, cutout {manifest.input.cutout}",
        "proxy": f"{manifest.extractor.arch}, {facts['validation_top1']:.2f} % top-1 on the meta-validation split",
        "searched for": f"{manifest.run.epochs} epochs, {manifest.run.iterations} iterations, "
        f"seed {manifest.search.settings.get('seed', '?')}",
        "operation space": f"{manifest.operations.space}, fill {manifest.operations.fill}",
        "alpha": _alpha(facts["alpha"]),
        "entropy of p_jk": f"{facts['entropy']:.5f} of uniform{_by_chance(manifest.results)}",
        "furthest from uniform": f"{facts['furthest']:.1%} (largest relative difference of a p_jk)",
        **display.with_interval(manifest.results, "weight_spread", "of 95 % of the last epoch's batches"),
        **display.signal_to_noise(manifest.results),
        "size": f"{facts['bytes']:,} bytes, {facts['parameters']['extractor']:,} parameters in the extractor, "
        f"{facts['parameters']['policy']:,} in the policy network",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "licence": manifest.licence or "not stated",
        "note": " ".join(manifest.note.split()) or "none",
    }
    display.print_figures(lines)
    for title, key in (("likeliest transformations", "likeliest"), ("unlikeliest", "unlikeliest")):
        print(f"\n{title} (uniform: {1 / len(manifest.operations.names) ** 2:.4%})")
        for entry in facts[key]:
            print(f"  {entry['first']:>12}, {entry['second']:<12}  {entry['probability']:.4%}")


def _inspect_list(policy: DatasetPolicy, size: int, as_json: bool) -> None:
    manifest = policy.manifest
    if as_json:
        display.print_json({"bundle": policy.origin, "bytes": size, **manifest.model_dump()})
        return
    display.print_figures(
        {
            "bundle": policy.origin,
            "digest": policy.digest,
            "kind": "dataset-level policy: equal weights, no extractor, any data set",
            "source": manifest.source,
            "lost": "; ".join(manifest.lost) or "nothing",
            "size": f"{size:,} bytes",
            "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
            "licence": manifest.licence or "not stated",
            "note": " ".join(manifest.note.split()) or "none",
        }
    )
    print(f"\n{len(manifest.sub_policies)} sub-policies, one drawn evenly for each image (probability, value)")
    for steps in manifest.sub_policies[:LISTED_SUB_POLICIES]:
        print(f"  {' then '.join(map(_spelled, steps)) or 'nothing'}")
    if (more := len(manifest.sub_policies) - LISTED_SUB_POLICIES) > 0:
        print(f"  and {more} more")


def _spelled(step: Step) -> str:
    sign = "+-" if step.mirrored else ""
    value = f", {sign}{step.value:g}" if has_magnitude(step.operation) else ""
    return f"{step.operation} ({step.probability:g}{value})"


def describe(manifest: Manifest, tensors: Mapping[str, RawTensor], size: int) -> dict[str, Any]:
    """A bundle's facts as plain values.

    Args:
        manifest, tensors: as `parse_bundle` returns them.
        size: of the file, bytes.
    """
    names = manifest.operations.names
    probabilities = _array(tensors[PROBABILITIES]).astype(np.float64)
    means = _array(tensors[MEANS])
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
        "alpha": _array(tensors[ALPHA]).reshape(-1).tolist(),
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
        "versions": manifest.versions,
        "licence": manifest.licence,
        "note": manifest.note,
    }


def _array(tensor: RawTensor) -> Any:
    """A float32 tensor as an array; alpha, probabilities and means are never stored otherwise."""
    return np.frombuffer(tensor.data, dtype="<f4").reshape(tensor.shape)


def _by_chance(results: Mapping[str, float]) -> str:
    ends = [results.get(f"entropy_by_chance_{end}") for end in ("low", "high")]
    return "" if None in ends else f" (by chance alone {ends[0]:.5f} to {ends[1]:.5f})"


def _alpha(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{len(values)} of them, from {min(values):.4f} to {max(values):.4f}"
