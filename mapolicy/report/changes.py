"""The differences between two bundles: manifest entries, probabilities p_jk, and sample weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..config.choices import LOSS
from ..policy.compress import WeightEffect, effect_on_weights
from ..policy.policy_bundle import PolicyBundle
from .tables import HeatTable, change_table

MOST = 60  # facts; a foreign bundle may hold any number of settings


@dataclass(frozen=True)
class Changes:
    """The differences between two bundles.

    Attributes:
        before, after: their digests.
        facts: (name, value before, value after) of the manifest entries that differ, at most `MOST`.
        left_out: number of further differences.
        table: relative change of p_jk.
        largest: (first operation, second operation, relative change) of the five p_jk that changed most.
        effect: difference of their weights on the same samples; None if they cannot be compared.
        no_effect: why they cannot be compared; empty where they can.
        real: the samples are images of the data set, not synthetic ones.
    """

    before: str
    after: str
    facts: Sequence[tuple[str, str, str]]
    left_out: int
    table: HeatTable
    largest: Sequence[tuple[str, str, float]]
    effect: WeightEffect | None
    real: bool
    no_effect: str = ""


def compare_bundles(before: PolicyBundle, after: PolicyBundle, images: Tensor | None = None) -> Changes:
    """Compare two bundles.

    Args:
        before, after: the bundles.
        images: two or more images of their data set, uint8 [n, C, S, S]; None takes synthetic images.
    """
    names = before.manifest.operations.names
    table = change_table(before.probabilities.numpy(), after.probabilities.numpy(), names)
    order = abs(table.values).argsort(axis=None, kind="stable")[::-1][:5]
    pairs = [divmod(int(position), len(names)) for position in order]
    facts = _differences(_facts(before), _facts(after))
    no_effect = _why_not_compared(before, after)
    return Changes(
        before=before.digest,
        after=after.digest,
        facts=facts[:MOST],
        left_out=max(0, len(facts) - MOST),
        table=table,
        largest=[(names[j], names[k], float(table.values[j, k])) for j, k in pairs],
        effect=None if no_effect else effect_on_weights(before, after, images),
        real=images is not None,
        no_effect=no_effect,
    )


def _why_not_compared(before: PolicyBundle, after: PolicyBundle) -> str:
    if any(bundle.manifest.policy.input == LOSS for bundle in (before, after)):
        return "Weights that follow the training loss cannot be compared without a training run."
    if before.manifest.equal_weights or after.manifest.equal_weights:
        which = (
            "Both policies weigh" if before.manifest.equal_weights and after.manifest.equal_weights else "One weighs"
        )
        return f"{which} all samples equally, so there are no weights to compare."
    if before.manifest.input.channels != after.manifest.input.channels:
        return "Their images have different numbers of channels, so their weights cannot be compared."
    return ""


def _facts(bundle: PolicyBundle) -> dict[str, str]:
    manifest = bundle.manifest
    return {
        "data set": manifest.dataset.name,
        "fingerprint of the data set": manifest.dataset.fingerprint[:16],
        "classes": str(len(manifest.dataset.classes)),
        "training images": str(manifest.dataset.counts.train),
        "meta-validation images": str(manifest.dataset.counts.meta_validation),
        "image size": str(manifest.input.size),
        "channels": str(manifest.input.channels),
        "operation space": manifest.operations.space,
        "proxy": manifest.extractor.arch,
        "extractor stored in": manifest.extractor.dtype,
        "meta-validation top-1, %": f"{manifest.results['validation_top1']:.2f}",
        "alpha, mean": f"{float(bundle.alpha.mean()):.4f}",
        "iterations": str(manifest.run.iterations),
        **{f"setting {name}": str(value) for name, value in sorted(manifest.search.settings.items())},
    }


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[tuple[str, str, str]]:
    names = dict.fromkeys([*before, *after])
    pairs = [(name, before.get(name, "none"), after.get(name, "none")) for name in names]
    return [(name, old, new) for name, old, new in pairs if old != new]
