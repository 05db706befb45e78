"""Whether a policy has learned more than chance, and what its weights distinguish."""

import math
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..policy.network import ROUNDING, PolicyNetwork
from ..policy.sampler import Sampler
from ..transforms.space import OPERATION_NAMES

NORMAL_95 = 1.96
UNKNOWN = -2.0  # below every cosine and every spread; stands for `none`, because a checkpoint holds finite numbers only
NEARLY_EQUAL = 0.02  # spread of the weights; below it all weights are equal to some per cent
MUCH = 0.25  # share of the weights' variance


class Estimate(NamedTuple):
    """A figure with its 95 % interval, which is not known for too few values."""

    value: float
    low: float
    high: float


class WeightShares(nn.Module):
    """How much of the weights' variance a sample's class explains, and how much its operations.

    Sums over samples by class, by first and by second operation; an iteration's weight is 1/e after `window` further
    ones. A share is the variance between the groups' means over the total variance, less what chance gives for as many
    groups (the adjusted R squared of an analysis of variance). First and second operation are drawn almost
    independently, so their shares add up.

    Args:
        classes: of the data set.
        window: iterations.
        operations: K.
    """

    counts: Tensor
    sums: Tensor
    total: Tensor

    def __init__(self, classes: int, window: int, operations: int = len(OPERATION_NAMES)) -> None:
        super().__init__()
        self._groups = (classes, operations, operations)
        self._keep = math.exp(-1 / window)
        for name in ("counts", "sums"):
            self.register_buffer(name, torch.zeros(classes + 2 * operations, dtype=torch.float64))
        # Number of samples, sum of squared decay factors, sum of weights, sum of squared weights.
        self.register_buffer("total", torch.zeros(4, dtype=torch.float64))

    def observe(self, weights: Tensor, labels: Tensor, pair: Tensor) -> None:
        """Take in an iteration: weights float [n], labels and `Transformation.pair` int64 [n]."""
        relative = (weights.detach() / weights.detach().mean()).double()
        classes, size, _ = self._groups
        place = torch.cat([labels, classes + pair // size, classes + size + pair % size])
        self.counts.mul_(self._keep).index_add_(0, place, torch.ones_like(place, dtype=torch.float64))
        self.sums.mul_(self._keep).index_add_(0, place, relative.repeat(3))
        count = torch.full((), float(len(relative)), dtype=torch.float64, device=relative.device)
        now = torch.stack([count, count, relative.sum(), relative.square().sum()])
        keep = torch.tensor([self._keep, self._keep**2, self._keep, self._keep], device=now.device)
        self.total.mul_(keep).add_(now)

    def figures(self) -> dict[str, float]:
        """`weight_share_class` and `weight_share_operations`; empty if the weights are equal or few."""
        samples, squared, weights, squares = self.total.tolist()
        if not samples:
            return {}
        mean, several = weights / samples, samples**2 / squared
        whole = squares - samples * mean**2
        if whole <= ROUNDING * squares:
            return {}
        shares = []
        for counts, sums in zip(self.counts.split(self._groups), self.sums.split(self._groups), strict=True):
            seen = counts > 0
            groups = int(seen.sum())
            if several <= groups:
                return {}
            between = float((counts[seen] * (sums[seen] / counts[seen] - mean) ** 2).sum())
            shares.append(1 - (1 - between / whole) * (several - 1) / (several - groups))
        by_class, first, second = shares
        return {"weight_share_class": by_class, "weight_share_operations": first + second}


class PolicyMonitor(nn.Module):
    """Watches what theta learns from.

    Two successive hypergradients come from different images at almost the same theta and w. With h = signal + noise
    the expected cosine of the angle between them is signal^2 / (signal^2 + noise^2), whatever their length, so that
    the mean cosine c gives the signal-to-noise ratio of one hypergradient, c / (1 - c). Successive cosines are
    uncorrelated where there is no signal.

    Everything is in buffers, so a resumed run continues the statistics.

    Args:
        width: number of theta's parameters.
        window: iterations that the recent figures cover.
        classes: of the data set.
        operations: K.
    """

    previous: Tensor
    cosines: Tensor
    spreads: Tensor
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, width: int, window: int, classes: int, operations: int = len(OPERATION_NAMES)) -> None:
        super().__init__()
        self.shares = WeightShares(classes, window, operations)
        self.register_buffer("previous", torch.zeros(width))
        for name in ("cosines", "spreads"):  # the recent ones
            self.register_buffer(name, torch.full((window,), UNKNOWN))
        for name in ("count", "total", "squares"):  # of all cosines
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @classmethod
    def of(cls, policy: PolicyNetwork, window: int, classes: int, operations: int = len(OPERATION_NAMES)) -> Self:
        """For a policy network, on its device."""
        parameters = list(policy.parameters())
        return cls(sum(parameter.numel() for parameter in parameters), window, classes, operations).to(
            parameters[0].device
        )

    def observe(self, gradient: Tensor | None, weights: Tensor, labels: Tensor, pair: Tensor) -> None:
        """Take in an iteration.

        Args:
            gradient: float [width], of the validation loss with respect to theta; None if it took no hypergradient.
            weights: float [n], of its weighted step.
            labels: int64 [n], of the samples.
            pair: int64 [n], `Transformation.pair` of the samples.
        """
        self.shares.observe(weights, labels, pair)
        cosine = torch.full_like(self.total, UNKNOWN)
        if gradient is not None:
            known = self.previous.any()  # a tensor; reading it would wait for the device
            found = F.cosine_similarity(gradient, self.previous, dim=0).double()  # 0 where the previous one is
            self.count += known
            self.total += found
            self.squares += found**2
            cosine = torch.where(known, found, cosine)
            self.previous.copy_(gradient)
        self.cosines.copy_(torch.cat([self.cosines[1:], cosine.to(self.cosines).reshape(1)]))
        self.spreads.copy_(torch.cat([self.spreads[1:], weight_spread(weights).to(self.spreads).reshape(1)]))

    def recent(self) -> dict[str, float]:
        """Signal-to-noise ratio of one hypergradient, from those in the window; empty with fewer than two."""
        known = self.cosines[self.cosines != UNKNOWN]
        return {"signal_to_noise": _ratio(float(known.mean()))} if len(known) else {}

    def signal_to_noise(self) -> Estimate:
        """Signal-to-noise ratio of one hypergradient, from all of them."""
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

    def figures(self, sampler: Sampler) -> dict[str, float]:
        """The figures for the bundle, by name; unknown ones are left out."""
        estimates = {"signal_to_noise": self.signal_to_noise(), "weight_spread": self.spread()}
        found = sampler.figures()
        for name, estimate in estimates.items():
            found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return {name: value for name, value in (found | self.shares.figures()).items() if math.isfinite(value)}

    def warnings(self, sampler: Sampler, weighs: bool = True) -> list[str]:
        """What a user should know before trusting the policy, each with what to try.

        Args:
            sampler: that was learned.
            weighs: whether the policy's weights were used.
        """
        found, signal, spread = [], self.signal_to_noise(), self.spread()
        if weighs and signal.low <= 0:
            found.append(
                "the hypergradients do not agree with each other beyond chance (signal to noise of one "
                f"{signal.value:.3f}, 95 % interval {signal.low:.3f} to {signal.high:.3f}): what the policy has "
                "learned may be chance; search longer, or raise batch_size and validation_batch_size"
            )
        found += sampler.warnings()
        if weighs and spread.value < NEARLY_EQUAL:
            found.append(
                f"the weights are nearly equal (standard deviation {spread.value:.4f} of the mean): search longer, or "
                "raise policy_learning_rate"
            )
        shares = self.shares.figures()
        by_class, by_operations = (shares.get(f"weight_share_{of}", 0.0) for of in ("class", "operations"))
        if spread.value >= NEARLY_EQUAL and by_class > max(MUCH, by_operations):
            found.append(
                f"the weights tell classes apart ({by_class:.0%} of their variance) more than operations "
                f"({by_operations:.0%}): what this network's classes lack is of little use to another one; try "
                "policy_input=embedding, or search longer"
            )
        return [f"warning: {text}" for text in found]


def weight_spread(weights: Tensor) -> Tensor:
    """Standard deviation of a batch's weights over their mean, float []: 0 if all weights are equal."""
    return weights.std(correction=0) / weights.mean().clamp(min=1e-30)  # all are 0 where Ren et al. reject a batch


def _ratio(cosine: float) -> float:
    return cosine / (1 - cosine) if cosine < 1 else math.inf
