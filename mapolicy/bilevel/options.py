"""How one bilevel iteration is computed."""

from dataclasses import dataclass
from typing import Self

from ..config import RunConfig
from ..config.choices import REWEIGHT


@dataclass(frozen=True)
class StepOptions:
    """How an iteration is computed; the defaults are the paper's algorithm.

    Attributes:
        clip_norm: largest norm of the weighted step's gradient; 0 does not clip.
        equal_weights: both steps have equal weights, so they share one gradient; theta is still learned.
        reweights: the weighted step has the weights of Ren et al., max(0, s_i) normalised, of the network at w; theta
            and alpha are not learned.
        fraction: fraction of the training batch and of the meta-validation batch that the hypergradient uses.
        simultaneous: w and theta are updated together: the weighted step has the old theta's weights, so its gradient
            is the virtual step's.
        reject_below_mean: the weighted step leaves out samples whose weight is below the batch's mean, and weighs the
            others equally (the paper's ablation).
        low_memory: the batch's forward is computed again for the weighted step instead of keeping its graph; on a CPU,
            freed memory returns to the system at once (`runtime.freed_memory.freed_memory_returned`).
        accumulate: number of micro-batches of a process's batch, computed one after the other; keeps no graph either.
        synchronised: batch normalisation by the statistics of all processes' samples.
        precision: of the networks' products, in all passes; the rest is in single precision.
    """

    clip_norm: float = 0.0
    equal_weights: bool = False
    reweights: bool = False
    fraction: float = 1.0
    simultaneous: bool = False
    reject_below_mean: bool = False
    low_memory: bool = False
    accumulate: int = 1
    synchronised: bool = False
    precision: str = "float32"

    @property
    def weighs_by_policy(self) -> bool:
        """Whether the weighted step has the policy network's weights."""
        return not (self.equal_weights or self.reweights)

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """The options that a configuration names."""
        return cls(
            clip_norm=config.clip_norm,
            equal_weights=config.weighting == "equal",
            reweights=config.weighting == REWEIGHT,
            fraction=config.meta_fraction,
            simultaneous=config.simultaneous,
            reject_below_mean=config.reject_below_mean,
            low_memory=config.low_memory,
            accumulate=config.accumulate,
            synchronised=config.batch_norm == "synchronised",
            precision=config.precision,
        )
