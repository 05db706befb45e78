"""Whether a policy has learned more than chance: agreement of successive hypergradients, spread of the weights."""

import math
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .policy import PolicyNetwork
from .sampler import TransformationSampler, relative_entropy

NORMAL_95 = 1.96
UNKNOWN = -2.0  # below every cosine and every spread; a checkpoint holds finite numbers alone
NEARLY_EQUAL = 0.02  # spread of the weights; every sample counts within some per cent of the same


class Estimate(NamedTuple):
    """A figure with its 95 % interval; the interval of too few values is not known."""

    value: float
    low: float
    high: float


class PolicyMonitor(nn.Module):
    """Watches what theta learns from.

    Two successive hypergradients come from different images at almost the same theta and w. With h = signal + noise
    the expected cosine of the angle between them is signal^2 / (signal^2 + noise^2), whatever their length, so that
    the mean cosine c gives the signal-to-noise ratio of one hypergradient, c / (1 - c). Successive cosines are
    uncorrelated where there is no signal.

    Everything is in buffers, so that a resumed run goes on counting.

    Args:
        width: theta's numbers.
        window: iterations that the recent figures look back on.
    """

    previous: Tensor
    cosines: Tensor
    spreads: Tensor
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.register_buffer("previous", torch.zeros(width))
        for name in ("cosines", "spreads"):  # the recent ones
            self.register_buffer(name, torch.full((window,), UNKNOWN))
        for name in ("count", "total", "squares"):  # of all cosines
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @classmethod
    def of(cls, policy: PolicyNetwork, window: int) -> Self:
        """For a policy network, on its device."""
        parameters = list(policy.parameters())
        return cls(sum(parameter.numel() for parameter in parameters), window).to(parameters[0].device)

    def observe(self, gradient: Tensor | None, weights: Tensor) -> None:
        """Take in an iteration.

        Args:
            gradient: float [width], of the validation loss with respect to theta; None if it took no hypergradient.
            weights: float [n], of its weighted step.
        """
        cosine = torch.full_like(self.total, UNKNOWN)
        if gradient is not None:
            known = self.previous.any()  # a tensor: asking for it would wait for the device
            found = F.cosine_similarity(gradient, self.previous, dim=0).double()  # 0 where the previous one is
            self.count += known
            self.total += found
            self.squares += found**2
            cosine = torch.where(known, found, cosine)
            self.previous.copy_(gradient)
        self.cosines.copy_(torch.cat([self.cosines[1:], cosine.to(self.cosines).reshape(1)]))
        self.spreads.copy_(torch.cat([self.spreads[1:], weight_spread(weights).to(self.spreads).reshape(1)]))

    def recent(self) -> dict[str, float]:
        """Signal to noise of one hypergradient, from those in the window; nothing without two of them."""
        known = self.cosines[self.cosines != UNKNOWN]
        return {"signal_to_noise": _ratio(float(known.mean()))} if len(known) else {}

    def signal_to_noise(self) -> Estimate:
        """Of one hypergradient, from all of them."""
        count = float(self.count)
        if count < 2:
            return Estimate(math.nan, math.nan, math.nan)
        mean = float(self.total) / count
        variance = max(0.0, float(self.squares) / count - mean**2) * count / (count - 1)
        half = NORMAL_95 * math.sqrt(variance / count)
        return Estimate(_ratio(mean), _ratio(mean - half), _ratio(mean + half))

    def spread(self) -> Estimate:
        """Of the weights: the mean over the window, and where 95 % of its iterations lie if they are normal."""
        seen = self.spreads[self.spreads != UNKNOWN].double()
        if not len(seen):
            return Estimate(math.nan, math.nan, math.nan)
        mean, half = float(seen.mean()), NORMAL_95 * float(seen.std(correction=0))
        return Estimate(mean, max(mean - half, 0.0), mean + half)

    def figures(self, sampler: TransformationSampler) -> dict[str, float]:
        """What a bundle says of all this, by name; what is not known is left out."""
        chance = sampler.entropy_by_chance()
        estimates = {"signal_to_noise": self.signal_to_noise(), "weight_spread": self.spread()}
        found = {"entropy_by_chance_low": chance[0], "entropy_by_chance_high": chance[1]}
        for name, estimate in estimates.items():
            found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def warnings(self, sampler: TransformationSampler) -> list[str]:
        """What a user should know before trusting the policy, each with what to try."""
        found, signal, spread = [], self.signal_to_noise(), self.spread()
        entropy, (low, _) = relative_entropy(sampler.probabilities), sampler.entropy_by_chance()
        if signal.low <= 0:
            found.append(
                "the hypergradients do not agree with each other beyond chance (signal to noise of one "
                f"{signal.value:.3f}, 95 % interval {signal.low:.3f} to {signal.high:.3f}): what the policy has "
                "learned may be chance; search longer, or raise batch_size and validation_batch_size"
            )
        if entropy >= low:
            found.append(
                f"p_jk is uniform within chance (entropy {entropy:.5f} of uniform, chance alone gives {low:.5f} or "
                "more): search longer, or raise policy_learning_rate"
            )
        if spread.value < NEARLY_EQUAL:
            found.append(
                f"the weights are nearly equal (standard deviation {spread.value:.4f} of the mean): search longer, or "
                "raise policy_learning_rate"
            )
        return [f"warning: {text}" for text in found]


def weight_spread(weights: Tensor) -> Tensor:
    """Standard deviation of a batch's weights over their mean, float []: 0 where all samples count the same."""
    return weights.std(correction=0) / weights.mean()


def _ratio(cosine: float) -> float:
    return cosine / (1 - cosine) if cosine < 1 else math.inf
