"""One iteration of either stage: augment the batch, weigh it, step."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..bilevel.bilevel_step import BilevelStep, StepRecord
from ..bilevel.diagnostics import PolicyMonitor, weight_spread
from ..bilevel.weighted_step import weighted_step
from ..models.features import running_statistics
from ..models.sync_batch_norm import batch_statistics
from ..policy.augmentations import Augmentation, SampledTransformations
from ..policy.pipeline import AugmentedBatch
from ..policy.sampler import Observation, Sampler, likeliest, relative_entropy
from ..runtime.precision import at_least_float32, autocast
from ..runtime.random import seed_for
from ..transforms.space import SPACES
from .mixing import mix, mixes
from .policy_view import PolicyView, relative_weights
from .sample_context import SampleContext
from .setup import LabelledImages, TrainingSetup

Outcome = tuple[Tensor, Callable[[], Mapping[str, float]]]


class Iteration(Protocol):
    """What a run repeats.

    Attributes:
        setup: what it trains.
        period: iterations after which the work of an iteration repeats.
    """

    setup: TrainingSetup
    period: int

    def learns_policy(self, step: int) -> bool:
        """Whether iteration `step` needs a meta-validation batch."""
        ...

    def likeliest(self, count: int) -> list[tuple[str, str, float]]:
        """The transformations that it draws most, as `sampler.likeliest`; none where nothing is drawn from p_jk."""
        ...

    def view(self, step: int, images: Tensor) -> PolicyView:
        """The policy after iteration `step`, with the uint8 images [B, C, H, W] of its batch."""
        ...

    def __call__(self, step: int, batch: LabelledImages, held_out: LabelledImages | None) -> Outcome:
        """Update the network, and the policy where it is learned.

        Args:
            step: number of the iteration, from 0.
            batch: uint8 images [B, C, H, W] and int64 labels [B].
            held_out: the same of the meta-validation split where the iteration learns the policy, else None.

        Returns:
            The loss, float [], and a function that computes what else is worth logging.
        """
        ...


Features = Callable[[AugmentedBatch], Tensor]
Weights = Callable[[AugmentedBatch], Tensor]  # of the whole batch, all processes' parts in order


class BilevelIteration:
    """Search, and training with a policy that goes on being learned.

    Args:
        setup: of the run.
        sampler: draws the transformations, and learns.
        bilevel: the step.
        monitor: watches it.
        features: of a frozen extractor, float [n, F]; None takes the task network's own.
        context: what the sampler sees of the images; None for one that sees nothing.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        sampler: Sampler,
        bilevel: BilevelStep,
        monitor: PolicyMonitor,
        features: Features | None = None,
        context: SampleContext | None = None,
    ) -> None:
        self.setup, self.sampler, self.bilevel, self.monitor = setup, sampler, bilevel, monitor
        self.augmentation = SampledTransformations(sampler, setup.config.operation_space)
        self.features, self.context = features, context
        # With equal weights theta is of no use, so the sampler alone decides whether a hypergradient is.
        needed = setup.config.weighting != "equal" or getattr(sampler, "needs_hypergradient", True)
        self.period, self._takes_hypergradients = (setup.config.meta_every, True) if needed else (1, False)
        self._validation_loss: Tensor | None = None
        self._weights: Tensor | None = None

    def learns_policy(self, step: int) -> bool:
        """Every `meta_every` iterations; never where nothing needs a hypergradient."""
        return self._takes_hypergradients and step % self.period == 0

    def likeliest(self, count: int) -> list[tuple[str, str, float]]:
        """Of the sampler."""
        return likeliest(self.sampler.probabilities, count, SPACES[self.setup.config.operation_space].names)

    def view(self, step: int, images: Tensor) -> PolicyView:
        """Of the sampler as it is now; weights where the policy network decides them."""
        space, equal = SPACES[self.setup.config.operation_space], self.setup.config.weighting == "equal"
        return PolicyView(
            step + 1,
            lambda: _augmented(self.setup, self.augmentation, self.context, step, images),
            lambda: None if equal else relative_weights(self._weights),
            self.sampler,
            space,
        )

    def __call__(self, step: int, batch: LabelledImages, held_out: LabelledImages | None) -> Outcome:
        """One iteration; arguments and result as in `Iteration`."""
        setup, config, sampler = self.setup, self.setup.config, self.sampler
        setup.schedule.step_update(step)
        augmentation, context = seeing(self.augmentation, self.context, step)
        augmented = setup.pipeline.augment(*batch, augmentation, step, step / setup.iterations)
        transformation = augmented.transformation
        assert transformation is not None
        record = self.bilevel(
            augmented.inputs,
            augmented.labels,
            transformation.embed(),
            None if held_out is None else (setup.pipeline.normalise(held_out[0]), held_out[1]),
            noise_seed=seed_for(config.seed, config.stage, "noise", step),
            features=None if self.features is None else self.features(augmented),
        )
        # One number for both, so that they travel once.
        both = setup.communicator.gather(augmented.labels * sampler.codes + sampler.code(transformation))
        code = both % sampler.codes
        losses = record.losses if getattr(sampler, "needs_losses", False) else None
        losses = None if losses is None else setup.communicator.gather(losses)
        sampler.observe(observation_of(record, code, context, losses))
        labels = both // sampler.codes
        self.monitor.observe(record.theta_gradient, record.weights, labels=labels, pair=sampler.pair(code))
        self._weights = record.weights
        if record.hypergradient is not None:
            self._validation_loss = record.hypergradient.validation_loss
        return record.loss, lambda: self._measures(record)

    def _measures(self, record: StepRecord) -> Mapping[str, float]:
        # Of the last hypergradient; none yet where a run goes on between two.
        known = {} if self._validation_loss is None else {"validation_loss": float(self._validation_loss)}
        return known | {
            "alpha": float(record.alpha.mean()),
            "entropy": relative_entropy(self.sampler.probabilities),
            "weight_spread": float(weight_spread(record.weights)),
            **self.monitor.recent(),
            "learning_rate": self.setup.optimizer.param_groups[0]["lr"],
        }


def observation_of(
    record: StepRecord, code: Tensor, context: Tensor | None = None, losses: Tensor | None = None
) -> Observation:
    """What a step tells the sampler.

    dL_val/dP_i = -s_i: what lowers the validation loss has a positive s_i.

    Args:
        record: of the step.
        code: int64 [n], names the samples' transformations.
        context: float [n, D], h(x) of their images; None for a sampler that does not see them.
        losses: float [n], of all processes' samples; None for a sampler that does not learn from them.
    """
    found = record.hypergradient
    return Observation(code, record.raw, None if found is None else -found.weights, record.rows, context, losses)


def seeing(augmentation: Augmentation, context: SampleContext | None, step: int) -> tuple[Augmentation, Tensor | None]:
    """The augmentation for the images of an iteration, and their h(x) float [n, D] where it sees them."""
    if context is None or not isinstance(augmentation, SampledTransformations):
        return augmentation, None
    context.prepare(step)
    seen = context.at(step)
    return augmentation.seeing(seen), seen


def _augmented(
    setup: TrainingSetup, augmentation: Augmentation, context: SampleContext | None, step: int, images: Tensor
) -> Tensor:
    """The images of an iteration augmented once more, from the same random numbers; nothing moves."""
    if context is not None and isinstance(augmentation, SampledTransformations):
        augmentation = augmentation.seeing(context.at(step))
    return setup.pipeline.transform(images, augmentation, step, step / setup.iterations)[0]


class WeightedIteration:
    """Training with given weights: a frozen policy's, or equal ones.

    Args:
        setup: of the run.
        augmentation: the policy's part of the pipeline.
        weights: of the whole of an augmented batch, float [n] with sum 1; None weighs all samples equally.
        context: what the augmentation sees of the images; None for one that sees nothing.
    """

    period = 1

    def __init__(
        self,
        setup: TrainingSetup,
        augmentation: Augmentation,
        weights: Weights | None = None,
        context: SampleContext | None = None,
    ) -> None:
        self.setup, self.augmentation, self.weights, self.context = setup, augmentation, weights, context
        self.loss = setup.training_loss
        self._weights: Tensor | None = None  # of the last batch, where they are not equal

    def learns_policy(self, step: int) -> bool:
        """Never."""
        return False

    def likeliest(self, count: int) -> list[tuple[str, str, float]]:
        """None: what is drawn does not move."""
        return []

    def view(self, step: int, images: Tensor) -> PolicyView:
        """Images and weights; what is drawn does not move."""
        return PolicyView(
            step + 1,
            lambda: _augmented(self.setup, self.augmentation, self.context, step, images),
            lambda: relative_weights(self._weights),
            None,
            SPACES[self.setup.config.operation_space],
        )

    def __call__(self, step: int, batch: LabelledImages, held_out: LabelledImages | None) -> Outcome:
        """One iteration; arguments and result as in `Iteration`, but `held_out` is not used."""
        setup, config = self.setup, self.setup.config
        setup.schedule.step_update(step)
        augmentation, _ = seeing(self.augmentation, self.context, step)
        augmented = setup.pipeline.augment(*batch, augmentation, step, step / setup.iterations)
        communicator = setup.communicator
        shard = communicator.shard(len(augmented.labels) * communicator.size)
        if self.weights is None:
            weights = torch.full((shard.whole,), 1 / shard.whole, device=augmented.inputs.device)
        else:
            weights = self._weights = self.weights(augmented)
        inputs, labels, own = augmented.inputs, augmented.labels, shard.of(weights)
        if mixes(config):
            inputs, labels, own = mix(config, inputs, labels, own, len(setup.splits.classes), step)
        setup.network.train()
        losses = self._losses(inputs, labels, step)
        loss = weighted_step(
            losses, own.chunk(config.accumulate), setup.network, setup.optimizer, config.clip_norm, communicator
        )
        communicator.average(running_statistics(setup.network))
        return loss, lambda: {
            "weight_spread": float(weight_spread(weights)),
            "learning_rate": setup.optimizer.param_groups[0]["lr"],
        }

    def _losses(self, inputs: Tensor, labels: Tensor, step: int) -> Iterator[Tensor]:
        """Of each part of the batch, float [n], with their graph; each draws noise of its own."""
        setup, config = self.setup, self.setup.config
        seed = seed_for(config.seed, config.stage, "noise", step)
        parts = (tensor.chunk(config.accumulate) for tensor in (inputs, labels))
        for number, (images, targets) in enumerate(zip(*parts, strict=True)):
            torch.manual_seed(seed + 2 * (setup.communicator.rank * config.accumulate + number))
            synchronised = batch_statistics(config.batch_norm == "synchronised", setup.communicator)
            with autocast(config.precision, images.device), synchronised:
                logits = setup.network(images)
            yield self.loss(at_least_float32(logits), targets)
