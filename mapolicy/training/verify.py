"""A search checks itself: the proxy is trained anew under several policies, and measured on held-out images.

All trainings have the same network to start from, batches, epochs and seed; they differ in what draws the
transformations. None of them sees a test image.
"""

import hashlib
import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..bundle.manifest_levels import LEARNED, UNIFORM, Verification, VerifiedPolicy
from ..config import SearchConfig
from ..data.batch_sampler import batches_per_epoch
from ..data.splits import DataSplits, Split
from ..errors import InputError, TrainingError
from ..policy.augmentations import Augmentation, SampledTransformations
from ..policy.samplers import LearnedDraws
from ..registries import ZERO_COST_POLICIES
from ..runtime.files import read_regular_file, write_atomically
from ..transforms.space import SPACES
from .callbacks import Reporter
from .iteration import WeightedIteration
from .sample_context import SampleContext
from .setup import TrainingSetup
from .step_time import StepTimer

# What a check compares by the setting `verification`: baselines, and the learned policy at shares of the search's own
# strength; uniform draws are a strength of 0.
COMPARED: Mapping[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "full": (("none", UNIFORM, "trivialaugment", "randaugment"), (1.0, 0.5)),
    "short": ((UNIFORM, "trivialaugment"), (1.0,)),
}
LARGEST_RECORD = 2**24
SAMPLES = 2  # iterations for a forecast


@dataclass(frozen=True)
class Candidate:
    """A policy to train with: a baseline, or the learned levels at a strength."""

    policy: str
    strength: float | None = None

    @property
    def key(self) -> str:
        """What its training is kept under, between a run and its resumption."""
        return self.policy if self.strength is None else f"{self.policy} {self.strength:g}"


def candidates(strength: float, verification: str = "full") -> list[Candidate]:
    """Everything that a search with this strength compares; one of strength 0 draws as `uniform` does."""
    baselines, shares = COMPARED[verification]
    learned = [Candidate(LEARNED, share * strength) for share in shares if strength > 0]
    return [*(Candidate(name) for name in baselines), *learned]


def verify(
    config: SearchConfig,
    splits: DataSplits,
    device: torch.device,
    draws: LearnedDraws,
    reporter: Reporter,
    record: Path | None = None,
    context: SampleContext | None = None,
) -> tuple[Verification, float]:
    """Train once under each candidate.

    Args:
        config: of the search.
        splits: its data set; `measured_on` says which images measure.
        device: of the networks.
        draws: what the search learned, with levels.
        reporter: told of each training.
        record: file in which finished trainings are kept, so that a resumed search does not repeat them.
        context: what the draws see of the training images; None for draws that see nothing.

    Returns:
        The rows, and the strength that did best; 0 where uniform draws did.

    Raises:
        TrainingError: a loss is not finite.
    """
    held_out, identity = measured_on(splits), _identity(config, draws)
    known = _read(record, identity)
    right: dict[Candidate, Tensor] = {}
    for candidate in candidates(config.alignment_strength, config.verification):
        if candidate.key in known:
            right[candidate] = torch.tensor(known[candidate.key], dtype=torch.bool)
        else:
            right[candidate] = _trained(config, splits, device, candidate, draws, context)
            known[candidate.key] = right[candidate].int().tolist()
            if record is not None:
                text = json.dumps({"identity": identity, "right": known}, sort_keys=True)
                write_atomically(record, text.encode())
        share = 100 * float(right[candidate].double().mean())
        reporter.on_note(f"verified {candidate.key}: {share:.1f} % of {len(held_out)} held-out images")
    strengths = {each: each.strength or 0.0 for each in right if each.policy in (LEARNED, UNIFORM)}
    # The strongest of equally good ones comes first: it is what the search itself trained with.
    best = max(strengths, key=lambda each: (int(right[each].sum()), strengths[each]))
    rows = [_row(candidate, found, right[best]) for candidate, found in right.items()]
    return Verification(
        images=len(held_out), unseen=splits.aside is not None, epochs=config.epochs, rows=tuple(rows)
    ), strengths[best]


def measured_on(splits: DataSplits) -> Split:
    """The images that were set aside for the check, which the policy has not seen, or the meta-validation split."""
    return splits.meta_validation if splits.aside is None else splits.aside


def verification_seconds(
    config: SearchConfig,
    splits: DataSplits,
    device: torch.device,
    draws: LearnedDraws,
    context: SampleContext | None = None,
) -> float:
    """How long `verify` will take: a few iterations are measured, times the iterations of all its trainings."""
    trainings = len(candidates(config.alignment_strength, config.verification))
    iterations = config.epochs * batches_per_epoch(config, len(splits.train))
    return trainings * iterations * verification_step_seconds(config, splits, device, draws, context)


def verification_step_seconds(
    config: SearchConfig,
    splits: DataSplits,
    device: torch.device,
    draws: LearnedDraws,
    context: SampleContext | None = None,
    samples: int = SAMPLES,
    at_most: float = math.inf,
) -> float:
    """Seconds of one iteration of `verify`'s trainings: the mean of a few, for which it takes `at_most` seconds."""
    setup = TrainingSetup.over(config.with_changes(copies=1), splits, device)
    learned = candidates(config.alignment_strength)[-1]
    iteration = _iteration(setup, config, learned, draws, context)
    timer, end = StepTimer(device, warm_up=1), time.monotonic() + at_most
    for batch in setup.iteration_batches([setup.plan(0)[0]] * (1 + samples), iteration.learns_policy):
        timer(partial(iteration, *batch))
        if time.monotonic() > end and timer.seconds is not None:
            break
    (each,) = timer.each(statistics.mean)
    return each


def _row(candidate: Candidate, found: Tensor, kept: Tensor) -> VerifiedPolicy:
    return VerifiedPolicy(
        policy=candidate.policy,
        strength=candidate.strength,
        correct=int(found.sum()),
        only_kept=int((kept & ~found).sum()),
        only_this=int((found & ~kept).sum()),
    )


def _trained(
    config: SearchConfig,
    splits: DataSplits,
    device: torch.device,
    candidate: Candidate,
    draws: LearnedDraws,
    context: SampleContext | None,
) -> Tensor:
    """Which held-out images a network is right about that was trained under a candidate, bool [images]."""
    # The search's own settings but for copies: each training costs plain steps.
    setup = TrainingSetup.over(config.with_changes(copies=1), splits, device)
    iteration = _iteration(setup, config, candidate, draws, context)
    for epoch in range(config.epochs):
        plan = setup.plan(epoch)
        for (step, _), batch in zip(plan, setup.batches(setup.training, plan, augment=True), strict=True):
            loss, _ = iteration(step, batch, None)
            if not bool(loss.isfinite()):
                raise TrainingError(f"verification of {candidate.key}", "the loss is not finite", "use --no-verify")
    return right_images(setup, measured_on(splits))


def _iteration(
    setup: TrainingSetup,
    config: SearchConfig,
    candidate: Candidate,
    draws: LearnedDraws,
    context: SampleContext | None,
) -> WeightedIteration:
    if candidate.strength is None:
        free = ZERO_COST_POLICIES.find(candidate.policy)(config, setup.splits.name)
        return WeightedIteration(setup, cast(Augmentation, free))
    sampler = draws.at(SPACES[config.operation_space], candidate.strength)
    seen = None if context is None else SampleContext(setup, context.table)
    return WeightedIteration(setup, SampledTransformations(sampler, config.operation_space), context=seen)


def right_images(setup: TrainingSetup, split: Split) -> Tensor:
    """Which of a split's images the setup's network classifies correctly, bool [images], CPU; all processes alike."""
    group, network = setup.communicator, setup.network
    batches = list(enumerate(torch.arange(len(split)).split(setup.config.batch_size)))
    found = torch.zeros(len(split), dtype=torch.int64, device=setup.pipeline.device)
    network.eval()
    with torch.inference_mode():
        own = batches[group.rank :: group.size]
        for (_, positions), (images, labels) in zip(own, split.batches(own), strict=True):
            found[positions] = (network(setup.pipeline.normalise(images)).argmax(1) == labels).long()
    network.train()
    return group.sum([found])[0].cpu().bool()


def _identity(config: SearchConfig, draws: LearnedDraws) -> str:
    """What the kept trainings belong to."""
    digest = hashlib.sha256(json.dumps(config.portable(), sort_keys=True).encode())
    tables = [draws.log_levels, None if draws.effects is None else draws.effects.table]
    for table in tables:
        if table is not None:
            digest.update(table.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(record: Path | None, identity: str) -> dict[str, list[int]]:
    """Kept trainings by candidate; none where the record is missing, damaged or of another search."""
    if record is None or not record.is_file():
        return {}
    try:
        found = json.loads(read_regular_file(record, LARGEST_RECORD))
        return dict(found["right"]) if found["identity"] == identity else {}
    except (InputError, ValueError, KeyError, TypeError):
        return {}
