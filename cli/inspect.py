"""`mapolicy inspect`: what a bundle contains. Does not build its networks or import torch."""

from collections.abc import Mapping

from ..bundle.dataset_level import DatasetPolicy, spelled_list
from ..bundle.describe import describe, log_levels, sample_effects
from ..bundle.findings import Findings
from ..bundle.load import SearchedFile
from ..bundle.source import Fetched
from . import display, options
from .grouped import grouped

LISTED_SUB_POLICIES = 30


@grouped
def inspect(
    *,
    bundle: options.BundleArgument,
    checks: options.BundleChecks,
    output: options.Output,
) -> None:
    """Check a bundle's file and show what it contains.

    Shows where the bundle came from and what it learned. The network is not built.

    Example: mapolicy inspect artifacts/digits.safetensors
    """
    opened = checks.open(bundle)
    if isinstance(opened.policy, DatasetPolicy):
        _show_list(opened.policy, opened.fetched, output)
    else:
        _show_searched(opened.policy, opened.fetched, output)


def _show_searched(policy: SearchedFile, fetched: Fetched, output: options.Output) -> None:
    manifest = policy.manifest
    facts = {"bundle": fetched.origin, **describe(manifest, policy.tensors, len(fetched.content))}
    if output.as_json:
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
        "extractor": display.NOT_BUILT,
        "proxy": f"{manifest.extractor.arch}, {facts['validation_top1']:.2f} % top-1 on the meta-validation split",
        "searched for": f"{manifest.run.epochs} epochs, {manifest.run.iterations} iterations, "
        f"seed {manifest.search.settings.get('seed', '?')}",
        "operation space": f"{manifest.operations.space}, fill {manifest.operations.fill}",
        "alpha": _alpha(facts["alpha"]),
        "entropy of p_jk": f"{facts['entropy']:.5f} of uniform{_by_chance(manifest.results)}",
        "furthest from uniform": f"{facts['furthest']:.1%} (largest relative difference of a p_jk)",
        **({} if manifest.equal_weights else display.spread_of_weights(manifest.results)),
        **display.signal_to_noise(manifest.results),
        "size": f"{facts['bytes']:,} bytes, {facts['parameters']['extractor']:,} parameters in the extractor, "
        f"{facts['parameters']['policy']:,} in the policy network",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "licence": manifest.licence or "not stated",
        "note": " ".join(manifest.note.split()) or "none",
    }
    display.print_findings(Findings.of(manifest, log_levels(policy.tensors), sample_effects(policy.tensors)))
    display.print_figures(lines)
    for title, key in (("likeliest transformations", "likeliest"), ("unlikeliest", "unlikeliest")):
        print(f"\n{title} (uniform: {1 / len(manifest.operations.names) ** 2:.4%})")
        for entry in facts[key]:
            print(f"  {entry['first']:>12}, {entry['second']:<12}  {entry['probability']:.4%}")


def _show_list(policy: DatasetPolicy, fetched: Fetched, output: options.Output) -> None:
    manifest, size = policy.manifest, len(fetched.content)
    if output.as_json:
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
    title, lines = spelled_list(manifest)
    print(f"\n{title}")
    for line in lines[:LISTED_SUB_POLICIES]:
        print(f"  {line}")
    if (more := len(lines) - LISTED_SUB_POLICIES) > 0:
        print(f"  and {more} more")


def _by_chance(results: Mapping[str, float]) -> str:
    ends = [results.get(f"entropy_by_chance_{end}") for end in ("low", "high")]
    return "" if None in ends else f" (by chance alone {ends[0]:.5f} to {ends[1]:.5f})"


def _alpha(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{len(values)} of them, from {min(values):.4f} to {max(values):.4f}"
