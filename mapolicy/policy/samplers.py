"""The samplers that the setting `sampler` names."""

from dataclasses import dataclass

from torch import Tensor

from ..bundle.manifest_levels import Levels
from ..config import RunConfig
from ..config.choices import CLASS, FEATURES
from ..registries import SAMPLERS
from ..transforms.space import SPACES, OperationSpace, level_edges
from .adversarial_sampler import AdversarialSampler
from .alignment_sampler import AlignmentSampler
from .level_sampler import LevelSampler
from .levels import FeatureDirections, SampleEffects, StagedLevels
from .sampler import Sampler, TransformationSampler


@dataclass(frozen=True)
class SamplerStart:
    """What another run learned, for fine-tuning.

    Attributes:
        probabilities: p_jk, float [K, K].
        means: mean policy outputs, float [K, K].
        log_levels: float [stages, K, bins] of an alignment sampler, or None.
        effects: how images change these levels, or None.
    """

    probabilities: Tensor
    means: Tensor
    log_levels: Tensor | None = None
    effects: SampleEffects | None = None


@dataclass(frozen=True)
class SamplerPlan:
    """What a sampler is built from.

    Attributes:
        config: of the run.
        iterations_per_epoch: whole batches of an epoch.
        start: what it goes on from; None starts uniform.
        inputs: D, how many numbers describe an image to a sampler that sees images; 0 for others.
    """

    config: RunConfig
    iterations_per_epoch: int
    start: SamplerStart | None = None
    inputs: int = 0

    @property
    def iterations(self) -> int:
        """Of the whole run."""
        return self.config.epochs * self.iterations_per_epoch


def mean_weight(plan: SamplerPlan) -> TransformationSampler:
    """Eq. 5 of MetaAugment: p_jk follows the policy network's mean outputs, levels stay uniform."""
    start = plan.start
    return TransformationSampler.from_config(
        plan.config,
        plan.iterations_per_epoch,
        None if start is None else start.probabilities,
        None if start is None else start.means,
    )


def alignment(plan: SamplerPlan) -> AlignmentSampler:
    """Operations and levels that harm held-out images are drawn less often."""
    config, table = plan.config, None if plan.start is None else plan.start.log_levels
    return AlignmentSampler(
        SPACES[config.operation_space],
        config.level_bins if table is None else table.shape[2] // 2,
        config.alignment_strength,
        config.alignment_rate,
        config.alignment_decay,
        plan.iterations,
        None if table is None else table[len(table) // 2 :].mean(0),
        plan.inputs,
        None if plan.start is None or plan.start.effects is None else plan.start.effects.table,
    )


def adversarial(plan: SamplerPlan) -> AdversarialSampler:
    """Operations and levels with a large training loss are drawn more often."""
    config, table = plan.config, None if plan.start is None else plan.start.log_levels
    return AdversarialSampler(
        SPACES[config.operation_space],
        config.level_bins if table is None else table.shape[2] // 2,
        config.adversarial_rate,
        config.adversarial_entropy,
        config.copies,
        plan.iterations,
        None if table is None else table[len(table) // 2 :].mean(0),
    )


def build_sampler(plan: SamplerPlan) -> Sampler:
    """The sampler that a configuration names."""
    found: Sampler = SAMPLERS.find(plan.config.sampler)(plan)
    return found


@dataclass(frozen=True)
class LearnedDraws:
    """What a bundle holds of a sampler.

    Attributes:
        probabilities: p_jk, float [K, K].
        means: mean policy outputs, float [K, K].
        levels: how `log_levels` is read; None for a sampler of pairs.
        log_levels: float32 [stages, K, bins]; None for a sampler of pairs.
        effects: how images change these levels; None for draws that do not see images.
    """

    probabilities: Tensor
    means: Tensor
    levels: Levels | None = None
    log_levels: Tensor | None = None
    effects: SampleEffects | None = None

    def at(self, space: OperationSpace, strength: float) -> StagedLevels:
        """The draws of another strength; for draws with levels."""
        assert self.log_levels is not None
        return StagedLevels(space, self.log_levels, strength, self.effects)


def learned_draws(
    sampler: Sampler,
    space: str,
    strength: float | None = None,
    features: FeatureDirections | None = None,
    course: bool = False,
) -> LearnedDraws:
    """What a sampler has learned, for a bundle.

    Args:
        sampler: of a finished run.
        space: name of the operation space.
        strength: kappa of the draws from the bundle; None takes the sampler's.
        features: the directions of the features that the sampler sees; None where it sees the class, or nothing.
        course: keep phi's whole course, a table for each stage of the run, instead of the mean of its second half.
    """
    if not isinstance(sampler, LevelSampler):
        return LearnedDraws(sampler.probabilities, sampler.means)
    stages = sampler.stages
    log_levels = (stages if course else stages[len(stages) // 2 :].mean(0, keepdim=True)).float()
    strength = sampler.strength if strength is None else strength
    table = sampler.sample_effects
    effects = None if table is None else SampleEffects(table.float(), features)
    levels = Levels(
        stages=len(log_levels),
        edges=level_edges(sampler.grid.bins // 2),
        strength=strength,
        input="none" if effects is None else CLASS if features is None else FEATURES,
        context=sampler.inputs,
    )
    probabilities = StagedLevels(SPACES[space], log_levels, strength).probabilities
    return LearnedDraws(probabilities, sampler.means, levels, log_levels, effects)
