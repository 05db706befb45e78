"""What a policy does to images at a moment of a run, for loggers. Nothing is computed before it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..policy.sampler import Sampler
from ..transforms.space import OperationSpace


@dataclass(frozen=True)
class PolicyView:
    """A policy after an iteration.

    Attributes:
        iteration: number of iterations that are completed.
        images: draws the last batch's images anew from the policy as it is now: uint8 [n, C, H, W], augmented and not
            normalised, of this process.
        weights: of the last batch's samples, float [n] with mean 1, on the CPU; None where all weigh the same.
        sampler: what draws the transformations, where it is being learned; None where draws are fixed.
        space: the operations.
    """

    iteration: int
    images: Callable[[], Tensor]
    weights: Callable[[], Tensor | None]
    sampler: Sampler | None
    space: OperationSpace


def relative_weights(weights: Tensor | None) -> Tensor | None:
    """Weights float [n] with sum 1 as multiples of an equal weight, on the CPU."""
    return None if weights is None else (weights.detach() * len(weights)).cpu()
