"""The samplers by the name that the setting `sampler` has."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..bundle.manifest import Levels
from ..config import RunConfig
from ..transforms.space import SPACES, level_edges
from .alignment_sampler import AlignmentSampler
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


Build = Callable[[SamplerPlan], Sampler]


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
    memory = max(1.0, config.alignment_memory * plan.iterations)
    return AlignmentSampler(
        SPACES[config.operation_space],
        config.level_bins if table is None else table.shape[2] // 2,
        config.alignment_strength,
        memory,
        plan.iterations,
        None if table is None else table[len(table) // 2 :].mean(0),
        # As much as the other run's memory held, of draws in both positions.
        2 * config.batch_size * config.copies * memory / config.meta_every,
    )


SAMPLERS: dict[str, Build] = {"mean-weight": mean_weight, "alignment": alignment}


def build_sampler(plan: SamplerPlan) -> Sampler:
    """The sampler that a configuration names."""
    return SAMPLERS[plan.config.sampler](plan)


def described_levels(sampler: Sampler) -> tuple[Levels | None, Tensor | None]:
    """What a bundle holds of learned levels: the manifest's part and the tensor [stages, K, bins]; or nothing."""
    if not isinstance(sampler, AlignmentSampler):
        return None, None
    stages = sampler.stages
    edges = level_edges(sampler.grid.bins // 2)
    return Levels(stages=len(stages), edges=edges, strength=sampler.strength), stages.float()
