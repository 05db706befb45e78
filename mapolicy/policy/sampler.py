"""The sampler: the probability p_jk of drawing operation j, then operation k (Eq. 5 of MetaAugment)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from ..config import RunConfig
from ..transforms.space import DEFAULT_SPACE, OPERATION_NAMES, SPACES, OperationSpace
from ..transforms.transformation import Transformation


@dataclass(frozen=True)
class Observation:
    """What a sampler learns from in one iteration; all processes' samples, in order.

    Attributes:
        code: int64 [n], the sampler's own number for each transformation.
        raw: float [n], the policy network's outputs before normalisation; None where they were not computed.
        alignment: float [m], s_i = < alpha v, grad L_i >, how much a step along a sample's gradient lowers the
            meta-validation loss; None without a hypergradient.
        rows: int64 [m], the samples that `alignment` belongs to.
        context: float [n, D], h(x) of each image before augmentation; None for a sampler that does not see images.
        losses: float [n], training losses at w; None for a sampler that does not learn from them, or where the step
            took none.
    """

    code: Tensor
    raw: Tensor | None = None
    alignment: Tensor | None = None
    rows: Tensor | None = None
    context: Tensor | None = None
    losses: Tensor | None = None


class Draws(Protocol):
    """Draws transformations, and learns nothing."""

    @property
    def probabilities(self) -> Tensor:
        """p_jk, float [K, K], sums to 1."""
        ...

    def sample(self, batch: int, generator: torch.Generator, progress: float | None = None) -> Transformation:
        """Draw `batch` transformations on the CPU.

        A sampler that sees images takes their h(x), float [batch, D], as a fourth argument `context`.

        Args:
            batch: how many.
            generator: on the CPU; the only source of randomness.
            progress: share of the run that is done, in [0, 1); None where a run's length is not known.
        """
        ...


class Sampler(Draws, Protocol):
    """Draws transformations and learns from their effect.

    A sampler may have two attributes. `needs_losses` true asks for `Observation.losses`. `needs_hypergradient` false
    says that it learns without one: with equal weights, the run then computes none.
    """

    @property
    def codes(self) -> int:
        """How many different codes there are."""
        ...

    @property
    def means(self) -> Tensor:
        """The mean raw output of the policy network for each pair of operations, float [K, K] in [0, 1]."""
        ...

    def code(self, transformation: Transformation) -> Tensor:
        """A number for each transformation that `observe` and `pair` understand, int64 [n] in [0, codes)."""
        ...

    def pair(self, code: Tensor) -> Tensor:
        """The pair of operations of each code: its position in the flattened p_jk, int64 [n]."""
        ...

    def observe(self, observation: Observation) -> None:
        """Take in one iteration."""
        ...

    def figures(self) -> dict[str, float]:
        """What a bundle records of what was learned."""
        ...

    def warnings(self) -> list[str]:
        """What a user should know before trusting what was learned."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, less the iteration's number."""
        ...

    def restore(self, state: dict[str, Tensor], iteration: int) -> None:
        """Go on from `state` as it was after `iteration` iterations."""
        ...


class TransformationSampler:
    """Draws transformations from p_jk and learns p_jk from the policy network's outputs.

    p_jk = (1 - epsilon) u_jk / sum(u) + epsilon / K^2 with u_jk = v_jk ^ (1 / temperature), where v_jk is the mean raw
    policy output of the samples that were given (j, k) in the last `history` iterations; pairs that were not drawn take
    the mean of those that were. p_jk starts uniform and is refreshed every `every` iterations.
    Source: MetaAugment (Zhou et al., AAAI 2021), Eq. 5; its temperature is 1.

    Args:
        epsilon: share of uniform exploration, in [0, 1].
        every: iterations between refreshes (s).
        history: iterations that v_jk averages (r).
        temperature: above 0; the lower, the more p_jk differs from uniform.
        probabilities: p_jk to start from, float [K, K]; None is uniform.
        means: v_jk to start from, float [K, K].
        space: the K operations.
    """

    def __init__(
        self,
        epsilon: float = 0.1,
        every: int = 1,
        history: int = 1,
        temperature: float = 1.0,
        probabilities: Tensor | None = None,
        means: Tensor | None = None,
        space: OperationSpace = SPACES[DEFAULT_SPACE],
    ) -> None:
        if not 0 <= epsilon <= 1 or not temperature > 0 or every < 1 or history < 1:
            raise ValueError("epsilon must lie in [0, 1], temperature above 0; every and history must be at least 1")
        self.epsilon, self.temperature, self.every, self.history = epsilon, temperature, every, history
        self.space, self.size = space, space.size
        uniform = torch.full((space.size, space.size), 1 / space.size**2, dtype=torch.float64)
        self.probabilities = (uniform if probabilities is None else probabilities).double()
        self.means = (torch.full((space.size, space.size), 0.5) if means is None else means).double()
        self.iteration = 0
        self._sums = torch.zeros(history, self.size**2)
        self._squares = torch.zeros(history, self.size**2)
        self._counts = torch.zeros(history, self.size**2, dtype=torch.int32)

    @classmethod
    def from_config(
        cls,
        config: RunConfig,
        iterations_per_epoch: int,
        probabilities: Tensor | None = None,
        means: Tensor | None = None,
    ) -> Self:
        """The sampler that a configuration describes in epochs."""
        return cls(
            config.epsilon,
            every=max(1, round(config.sampler_every * iterations_per_epoch)),
            history=max(1, round(config.sampler_history * iterations_per_epoch)),
            temperature=config.sampler_temperature,
            probabilities=probabilities,
            means=means,
            space=SPACES[config.operation_space],
        )

    @property
    def codes(self) -> int:
        """K^2: a code is a pair of operations."""
        return self.probabilities.numel()

    def code(self, transformation: Transformation) -> Tensor:
        """The pair of each transformation, int64 [n]."""
        return transformation.pair

    def pair(self, code: Tensor) -> Tensor:
        """The codes themselves."""
        return code

    def observe(self, observation: Observation) -> None:
        """Record the raw outputs; an iteration without outputs only advances the count of iterations."""
        if observation.raw is None:
            self.record(observation.code[:0], torch.empty(0))
        else:
            self.record(observation.code, observation.raw)

    def sample(self, batch: int, generator: torch.Generator, progress: float | None = None) -> Transformation:
        """`batch` transformations on the CPU: pairs from p_jk, levels uniform, directions fair."""
        pair = torch.multinomial(self.probabilities.flatten(), batch, replacement=True, generator=generator)
        return Transformation.draw_magnitudes(pair // self.size, pair % self.size, generator, self.space)

    def record(self, pair: Tensor, raw: Tensor) -> None:
        """Record one iteration; refresh p_jk when it is due.

        Args:
            pair: int64 [B], `Transformation.pair`.
            raw: float [B], the policy's outputs before normalisation.
        """
        row = self.iteration % self.history
        pair, raw = pair.cpu(), raw.detach().float().cpu()
        self._sums[row] = torch.zeros(self.size**2).index_add_(0, pair, raw)
        self._squares[row] = torch.zeros(self.size**2).index_add_(0, pair, raw.square())
        self._counts[row] = torch.bincount(pair, minlength=self.size**2).int()
        self.iteration += 1
        if self.iteration % self.every == 0:
            self._refresh()

    def _refresh(self) -> None:
        sums = self._sums.sum(0, dtype=torch.float64)
        counts = self._counts.sum(0)
        seen = counts > 0
        if not seen.any():  # equal weights without a hypergradient need no outputs
            return
        values = torch.where(seen, sums / counts.clamp(min=1), 0.0)
        values = torch.where(seen, values, values[seen].mean()).reshape(self.size, self.size)
        self.means = values
        # Divided by their largest first, so that the powers do not all underflow.
        shares = (values / values.max()) ** (1 / self.temperature)
        self.probabilities = (1 - self.epsilon) * shares / shares.sum() + self.epsilon / self.size**2

    def entropy_by_chance(self) -> tuple[float, float]:
        """The 95 % range of p_jk's relative entropy if the policy treated all transformations alike.

        v_jk would still differ, by the samples that each pair happened to get: by s^2 / n_jk, where s^2 is the outputs'
        variance within pairs. To second order the entropy falls short of the uniform one by half of p_jk's relative
        variance, and that varies as chi-squared with K^2 - 1 degrees of freedom. (0, 1) before two outputs of a pair.
        """
        counts, sums = self._counts.sum(0).double(), self._sums.sum(0, dtype=torch.float64)
        seen, squares = counts > 0, self._squares.sum(0, dtype=torch.float64)
        freedom = float((counts - 1).clamp(min=0).sum())
        if not freedom:
            return 0.0, 1.0
        within = float((squares[seen] - sums[seen] ** 2 / counts[seen]).clamp(min=0).sum()) / freedom
        mean = float(sums.sum() / counts.sum())
        relative = within * float((1 / counts[seen]).mean()) / (self.temperature * mean) ** 2
        shortfall = (1 - self.epsilon) ** 2 * relative / (2 * math.log(self.size**2))
        deviation = 1.96 * math.sqrt(2 / (self.size**2 - 1))
        return max(0.0, 1 - shortfall * (1 + deviation)), min(1.0, 1 - shortfall * (1 - deviation))

    def figures(self) -> dict[str, float]:
        """The range of the entropy by chance alone."""
        low, high = self.entropy_by_chance()
        return {"entropy_by_chance_low": low, "entropy_by_chance_high": high}

    def warnings(self) -> list[str]:
        """Whether p_jk differs from uniform by no more than chance."""
        entropy, (low, _) = relative_entropy(self.probabilities), self.entropy_by_chance()
        if entropy < low:
            return []
        return [
            f"p_jk is uniform within chance (entropy {entropy:.5f} of uniform, chance alone gives {low:.5f} or "
            "more): search longer, or raise policy_learning_rate"
        ]

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, less the iteration's number."""
        return {
            "probabilities": self.probabilities,
            "means": self.means,
            "sums": self._sums,
            "squares": self._squares,
            "counts": self._counts,
        }

    def restore(self, state: dict[str, Tensor], iteration: int) -> None:
        """Go on from `state` as it was after `iteration` iterations."""
        self.probabilities, self.means = state["probabilities"].clone(), state["means"].clone()
        self._sums, self._squares = state["sums"].clone(), state["squares"].clone()
        self._counts = state["counts"].clone()
        self.iteration = iteration


def relative_entropy(probabilities: Tensor) -> float:
    """Entropy of p_jk over that of the uniform distribution: 1 is uniform, 0 is a single pair."""
    p = probabilities.double().flatten()
    return float(-torch.special.xlogy(p, p).sum() / math.log(p.numel()))


def likeliest(
    probabilities: Tensor, count: int, names: Sequence[str] = OPERATION_NAMES
) -> list[tuple[str, str, float]]:
    """The likeliest transformations: first operation, second operation, probability.

    Args:
        probabilities: p_jk, float [K, K].
        count: how many.
        names: of the K operations.
    """
    values, positions = probabilities.flatten().topk(count)
    pairs = [divmod(position, len(names)) for position in positions.tolist()]
    return [(names[j], names[k], value) for (j, k), value in zip(pairs, values.tolist(), strict=True)]
