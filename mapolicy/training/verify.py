"""A search checks itself: the proxy is trained anew under several policies, and measured on held-out images.

All trainings have the same network to start from, batches, epochs and seed; they differ in what draws the
transformations. None of them sees a test image.
"""

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
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
from ..errors import TrainingError
from ..policy.augmentations import Augmentation, SampledTransformations
from ..policy.samplers import LearnedDraws
from ..registries import ZERO_COST_POLICIES
from ..runtime.words import plural
from ..transforms.space import SPACES
from .callbacks import Reporter
from .check_record import CheckRecord
from .iteration import WeightedIteration
from .pace import Deadline, Extent, fitting
from .sample_context import SampleContext
from .setup import TrainingSetup
from .step_time import StepTimer

# What a check compares by the setting `verification`: baselines, and the learned policy at shares of the search's own
# strength; uniform draws are a strength of 0.
COMPARED: Mapping[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "full": (("none", UNIFORM, "trivialaugment", "randaugment"), (1.0, 0.5)),
    "short": ((UNIFORM, "trivialaugment"), (1.0,)),
}
ESSENTIAL = 2  # trainings that a check has once it has begun
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

    @property
    def in_words(self) -> str:
        """What it is called in a sentence."""
        return f"policy {self.policy}" if self.strength is None else f"the learned policy at strength {self.strength:g}"


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
    deadline: Deadline | None = None,
) -> tuple[Verification | None, float | None]:
    """Train once under each candidate.

    Args:
        config: of the search.
        splits: its data set; `measured_on` says which images measure.
        device: of the networks.
        draws: what the search learned, with levels.
        reporter: told of each training.
        record: file in which finished trainings are kept, so that a resumed search does not repeat them.
        context: what the draws see of the training images; None for draws that see nothing.
        deadline: when the check has to have ended; what does not fit is left out, and stays so in a resumed search.

    Returns:
        The rows, and the strength that did best; 0 where uniform draws did. None twice where there was no time.

    Raises:
        TrainingError: a loss is not finite.
    """
    order = _by_importance(config)
    kept = CheckRecord.of(record, _identity(config, draws), Extent(config.epochs))
    if deadline is not None and kept.is_new:
        one = training_seconds(config, splits, device, draws, context)
        keys, fewest = [each.key for each in order], config.warmup_epochs + 1
        kept.cut(fitting(deadline.left(), one, keys, config.epochs, fewest), reporter)
    shorter, images = config.with_changes(epochs=max(1, kept.extent.epochs)), len(measured_on(splits))
    progress = _Progress(reporter, config.epochs * batches_per_epoch(config, len(splits.train)))
    for number, candidate in enumerate(order):
        if candidate.key in kept.extent.left_out:
            continue
        if candidate.key not in kept.right:
            later = [each.key for each in order[number + 1 :] if each.key not in kept.extent.left_out]
            began, ended = time.monotonic(), partial(progress.epoch, shorter.epochs * len(later))
            right = _trained(shorter, splits, device, candidate, draws, context, ended)
            kept.add(candidate.key, right.int().tolist())
            if deadline is not None:
                most = deadline.rows(time.monotonic() - began, at_least=ESSENTIAL - number - 1)
                kept.cut(kept.extent.without(later[most:]), reporter)
        share = 100 * sum(kept.right[candidate.key]) / images
        what = f"check: trained with {candidate.in_words}, the proxy is right about {share:.1f} %"
        reporter.on_note(f"{what} of {plural(images, 'held-out image')}")
    return _verification(config, splits, kept)


class _Progress:
    """Tells the time left of a check after each epoch of its trainings."""

    def __init__(self, reporter: Reporter, iterations: int) -> None:
        self._reporter, self._iterations = reporter, iterations  # of the search, which are done
        self._began, self._epochs = time.monotonic(), 0

    def epoch(self, later: int, left: int) -> None:
        """An epoch has ended; so many are left of its training, and so many in later ones."""
        self._epochs += 1
        each = (time.monotonic() - self._began) / self._epochs
        self._reporter.on_step(self._iterations, each * (left + later))


def _by_importance(config: SearchConfig) -> list[Candidate]:
    """The trainings of a check; those without which it says nothing come first."""
    order = [LEARNED, UNIFORM, "trivialaugment", "weaker", "none", "randaugment"]

    def rank(each: Candidate) -> int:
        weaker = each.strength is not None and each.strength < config.alignment_strength
        return order.index("weaker" if weaker else each.policy)

    return sorted(candidates(config.alignment_strength, config.verification), key=rank)


def _verification(
    config: SearchConfig, splits: DataSplits, kept: CheckRecord
) -> tuple[Verification | None, float | None]:
    """What follows from the trainings that are done."""
    everything = candidates(config.alignment_strength, config.verification)
    done = [each for each in everything if each.key not in kept.extent.left_out]
    if not done:
        return None, None
    right = {each: torch.tensor(kept.right[each.key], dtype=torch.bool) for each in done}
    strengths = {each: each.strength or 0.0 for each in done if each.policy in (LEARNED, UNIFORM)}
    # The strongest of equally good ones comes first: it is what the search itself trained with.
    best = max(strengths, key=lambda each: (int(right[each].sum()), strengths[each]))
    rows = tuple(_row(candidate, found, right[best]) for candidate, found in right.items())
    images, unseen = len(measured_on(splits)), splits.aside is not None
    return Verification(images=images, unseen=unseen, epochs=kept.extent.epochs, rows=rows), strengths[best]


def left_out(config: SearchConfig, verification: Verification | None) -> list[str]:
    """What a check does not tell for lack of time: its missing trainings and, where they are fewer, their epochs."""
    done = set() if verification is None else {Candidate(row.policy, row.strength) for row in verification.rows}
    every = candidates(config.alignment_strength, config.verification)
    missing = [each.key for each in every if each not in done]
    if verification is not None and verification.epochs < config.epochs:
        missing.append(f"{plural(config.epochs - verification.epochs, 'epoch')} of each training")
    return missing


def measured_on(splits: DataSplits) -> Split:
    """The images that were set aside for the check, which the policy has not seen, or the meta-validation split."""
    return splits.meta_validation if splits.aside is None else splits.aside


def training_seconds(
    config: SearchConfig,
    splits: DataSplits,
    device: torch.device,
    draws: LearnedDraws,
    context: SampleContext | None = None,
) -> float:
    """How long one training of `verify` will take, by a few iterations."""
    iterations = config.epochs * batches_per_epoch(config, len(splits.train))
    return iterations * verification_step_seconds(config, splits, device, draws, context)


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
    on_epoch: Callable[[int], None],
) -> Tensor:
    """Which held-out images a network is right about that was trained under a candidate, bool [images].

    `on_epoch` is called after each epoch with the number of those that are left.
    """
    # The search's own settings but for copies: each training costs plain steps.
    setup = TrainingSetup.over(config.with_changes(copies=1), splits, device)
    iteration = _iteration(setup, config, candidate, draws, context)
    for epoch in range(config.epochs):
        plan = setup.plan(epoch)
        for (step, _), batch in zip(plan, setup.batches(setup.training, plan, augment=True), strict=True):
            loss, _ = iteration(step, batch, None)
            if not bool(loss.isfinite()):
                raise TrainingError(f"verification of {candidate.key}", "the loss is not finite", "use --no-verify")
        on_epoch(config.epochs - epoch - 1)
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
