"""Everything that a page about a policy shows, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..bundle.dataset_level import PublishedManifest
from ..bundle.describe import describe
from ..bundle.load import Opened, SearchedFile
from ..data.splits import DataSplits
from ..errors import InputError
from ..policy.compress import synthetic_images
from ..policy.policy_bundle import PolicyBundle
from .changes import Changes, compare_bundles
from .metrics import RunLog
from .sample_weights import SampleWeights
from .samples import Preferences, Response, Samples, draw_samples, prefer, respond
from .tables import HeatTable, preference_table, probability_table

SAMPLES = 1024  # augmented images that are weighed, in each of two studies


@dataclass(frozen=True)
class Report:
    """What is known of a policy. What is None is not known, or does not belong to this kind of policy.

    Attributes:
        origin: where the bundle came from; empty where there is only a run.
        described: a searched bundle, as `describe` returns it.
        published: a dataset-level bundle.
        probabilities: p_jk.
        response: weight against magnitude.
        run: the log of a run.
        samples, classes: what the policy does to its data set.
        class_names: of `samples`' labels.
        no_data: why they are not known.
        changes: against another bundle.
    """

    origin: str = ""
    described: Mapping[str, Any] | None = None
    published: PublishedManifest | None = None
    probabilities: HeatTable | None = None
    response: Response | None = None
    run: RunLog | None = None
    samples: Samples | None = None
    classes: HeatTable | None = None
    class_names: tuple[str, ...] = field(default=(), repr=False)
    no_data: str = ""
    changes: Changes | None = None

    @property
    def digest(self) -> str:
        """Of the bundle, or of the one that the run made or used; empty where there is none."""
        if self.described:
            return str(self.described["digest"])
        if self.published:
            return self.published.digest
        return min(self.run.digests) if self.run and len(self.run.digests) == 1 else ""

    @property
    def subject(self) -> str:
        """What the policy was learned on, or what the run trained on."""
        if self.described:
            return str(self.described["dataset"]["name"])
        if self.published:
            return self.published.source
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
    """What there is to know of a policy.

    Args:
        opened: the bundle's file, of either kind.
        bundle: the same with its networks, if it is a searched one.
        run: one that made or used it.
        splits: its data set.
        no_data: why there is none.
        against: another bundle to compare with.
        samples: augmented images in each study.
        device: where networks run; None is the CPU.

    Raises:
        InputError: the run is another bundle's.
    """
    if opened is None:
        return Report(run=run)
    digest = opened.policy.digest
    if run is not None and run.digests and digest not in run.digests:
        why = f"is a run of the bundle {min(run.digests)[:12]}, not of {digest[:12]}"
        raise InputError(run.folder, why, "name the run folder that belongs to the bundle")
    if not isinstance(opened.policy, SearchedFile):
        return Report(opened.fetched.origin, published=opened.policy.manifest, run=run)
    assert bundle is not None
    manifest, names = bundle.manifest, bundle.manifest.operations.names
    sample_weights = SampleWeights(bundle, device or torch.device("cpu"))
    drawn = preferences = None
    if splits is not None:
        drawn = draw_samples(sample_weights, splits.train, samples)
        preferences = prefer(sample_weights, splits.train, samples)
    images = synthetic_images(manifest.input) if drawn is None else drawn.originals
    return Report(
        origin=opened.fetched.origin,
        described=describe(manifest, opened.policy.tensors, len(opened.fetched.content)),
        probabilities=probability_table(bundle.probabilities.numpy(), bundle.means.numpy(), names),
        response=respond(sample_weights, images, drawn is not None),
        run=run,
        samples=drawn,
        classes=None if preferences is None else _class_table(preferences, manifest.dataset.classes, names),
        class_names=tuple(manifest.dataset.classes),
        no_data=no_data,
        changes=None if against is None else compare_bundles(against, bundle, None if drawn is None else images[:64]),
    )


def _class_table(found: Preferences, classes: tuple[str, ...], names: tuple[str, ...]) -> HeatTable:
    shown = [classes[label] for label in found.labels]
    return preference_table(shown, names, found.ratios, found.errors, found.images, len(classes))
