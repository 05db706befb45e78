"""The samplers that the setting `sampler` names."""

from dataclasses import dataclass

from torch import Tensor

from ..bundle.manifest import Levels
from ..config import RunConfig
from ..registries import SAMPLERS
from ..transforms.space import SPACES, level_edges
from .alignment_sampler import AlignmentSampler
from .levels import StagedLevels
from .sampler import Sampler, TransformationSampler


@dataclass(frozen=True)
class SamplerStart:
    """What another run learned, for fine-tuning.

    Attributes:
        probabilities: p_jk, float [K, K].
        means: mean policy outputs, float [K, K].
        log_levels: float [stages, K, bins] of an alignment sampler, or None.
    """

    probabilities: Tensor
    means: Tensor
    log_levels: Tensor | None = None


@dataclass(frozen=True)
class SamplerPlan:
    """What a sampler is built from.

    Attributes:
        config: of the run.
        iterations_per_epoch: whole batches of an epoch.
        start: what it goes on from; None starts uniform.
    """

    config: RunConfig
    iterations_per_epoch: int
    start: SamplerStart | None = None

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
    """

    probabilities: Tensor
    means: Tensor
    levels: Levels | None = None
    log_levels: Tensor | None = None


def learned_draws(sampler: Sampler, space: str, strength: float | None = None) -> LearnedDraws:
    """What a sampler has learned, for a bundle.

    Args:
        sampler: of a finished run.
        space: name of the operation space.
        strength: kappa of the draws from the bundle; None takes the sampler's.
    """
    if not isinstance(sampler, AlignmentSampler):
        return LearnedDraws(sampler.probabilities, sampler.means)
    log_levels = sampler.stages.float()
    strength = sampler.strength if strength is None else strength
    levels = Levels(stages=len(log_levels), edges=level_edges(sampler.grid.bins // 2), strength=strength)
    probabilities = StagedLevels(SPACES[space], log_levels, strength).probabilities
    return LearnedDraws(probabilities, sampler.means, levels, log_levels)
