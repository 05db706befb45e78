"""Everything that a report about a policy shows, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..bundle.dataset_level import PublishedManifest
from ..bundle.describe import describe, log_levels, sample_effects
from ..bundle.findings import Findings
from ..bundle.load import Opened, SearchedFile
from ..data.splits import DataSplits
from ..errors import InputError
from ..policy.compress import synthetic_images
from ..policy.policy_bundle import PolicyBundle
from .changes import Changes, compare_bundles
from .class_preferences import ClassPreferences, class_preferences
from .magnitude_response import MagnitudeResponse, magnitude_response
from .metrics import RunLog
from .sample_weights import SampleWeights
from .samples import Samples, draw_samples
from .tables import HeatTable, level_table, preference_table, probability_table

SAMPLES = 1024  # transformed images, for the samples and again for the classes
COMPARED_SAMPLES = 64  # images for the weights of two bundles


@dataclass(frozen=True)
class Report:
    """The content of a report. A field is None if it is not known, or if this kind of policy does not have it.

    A policy with equal weights has no response, no samples and no preferences of classes.

    Attributes:
        origin: where the bundle came from; empty for a run alone.
        described: result of `describe` for a searched bundle.
        dataset_level: manifest of a dataset-level policy.
        findings: what was learned and how it did in its own check, in sentences.
        levels: how often each level is drawn.
        probabilities: p_jk.
        response: weight against magnitude.
        run: settings, result and curves of a run.
        samples: training images with transformations, weights and losses.
        classes: preferences of classes.
        class_names: names of the data set's classes.
        no_data: why the data set could not be loaded.
        changes: differences to another bundle.
    """

    origin: str = ""
    described: Mapping[str, Any] | None = None
    dataset_level: PublishedManifest | None = None
    findings: Findings = field(default_factory=Findings)
    levels: HeatTable | None = None
    probabilities: HeatTable | None = None
    response: MagnitudeResponse | None = None
    run: RunLog | None = None
    samples: Samples | None = None
    classes: HeatTable | None = None
    class_names: tuple[str, ...] = field(default=(), repr=False)
    no_data: str = ""
    changes: Changes | None = None

    @property
    def digest(self) -> str:
        """Digest of the bundle, or of the bundle that the run wrote or used; empty if there is none."""
        if self.described:
            return str(self.described["digest"])
        if self.dataset_level:
            return self.dataset_level.digest
        return min(self.run.digests) if self.run and len(self.run.digests) == 1 else ""

    @property
    def subject(self) -> str:
        """The data set of the policy or of the run."""
        if self.described:
            return str(self.described["dataset"]["name"])
        if self.dataset_level:
            return self.dataset_level.source
        return str(self.run.settings.get("dataset", "")) if self.run else ""


def gather(
    opened: Opened | None,
    bundle: PolicyBundle | None,
    run: RunLog | None = None,
    splits: DataSplits | None = None,
    no_data: str = "",
    against: PolicyBundle | None = None,
    samples: int = SAMPLES,
    device: torch.device | None = None,
) -> Report:
    """Compute the content of a report.

    Args:
        opened: the bundle's file; None for a run alone.
        bundle: the searched bundle with its networks; None for a dataset-level policy.
        run: a run that wrote or used the bundle.
        splits: the bundle's data set; None leaves the samples and classes out.
        no_data: why there is no data set.
        against: another searched bundle to compare with.
        samples: number of transformed images, for the samples and again for the classes.
        device: where networks run; None is the CPU.

    Raises:
        InputError: the run belongs to another bundle.
    """
    # More than 60 lines: one list of everything that a page shows, in the order of the page.
    if opened is None:
        return Report(run=run)
    digest = opened.policy.digest
    if run is not None and run.digests and digest not in run.digests:
        why = f"is a run of the bundle {min(run.digests)[:12]}, not of {digest[:12]}"
        raise InputError(run.folder, why, "name the run folder that belongs to the bundle")
    if not isinstance(opened.policy, SearchedFile):
        return Report(opened.fetched.origin, dataset_level=opened.policy.manifest, run=run)
    assert bundle is not None
    manifest, names = bundle.manifest, bundle.manifest.operations.names
    table = log_levels(opened.policy.tensors)
    drawn, preferences, response, images = None, None, None, synthetic_images(manifest.input)
    if manifest.weighs_images:
        sample_weights = SampleWeights(bundle, device or torch.device("cpu"))
        if splits is not None:
            drawn = draw_samples(sample_weights, splits.train, samples)
            preferences = class_preferences(sample_weights, splits.train, samples)
            images = drawn.originals
        response = magnitude_response(sample_weights, images, drawn is not None)
    real = drawn is not None
    return Report(
        origin=opened.fetched.origin,
        described=describe(manifest, opened.policy.tensors, len(opened.fetched.content)),
        findings=Findings.of(manifest, table, sample_effects(opened.policy.tensors)),
        levels=None if table is None else level_table(table, bundle.strength, bundle.operation_space),
        probabilities=probability_table(bundle.probabilities.numpy(), bundle.means.numpy(), names),
        response=response,
        run=run,
        samples=drawn,
        classes=None if preferences is None else _class_table(preferences, manifest.dataset.classes, names),
        class_names=tuple(manifest.dataset.classes),
        no_data=no_data,
        changes=None
        if against is None
        else compare_bundles(against, bundle, images[:COMPARED_SAMPLES] if real else None),
    )


def _class_table(found: ClassPreferences, classes: tuple[str, ...], names: tuple[str, ...]) -> HeatTable:
    shown = [classes[label] for label in found.labels]
    return preference_table(shown, names, found.ratios, found.errors, found.images, len(classes))
