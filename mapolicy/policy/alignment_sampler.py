"""The alignment sampler: draws operations and levels, and draws those less often that harm held-out images.

Each hypergradient gives s_i = < alpha v, grad L_i(w) > for every training sample: how much a step along the sample's
gradient lowers the meta-validation loss. Samples share operations and levels, so the mean of s_i over the samples
with an operation at a level says whether it helps or harms. What harms is drawn less often; nothing is drawn more often
than the rest:

    q(o, b)    is proportional to  u(o, b) exp(kappa * phi(o, b)),        phi <= 0
    phi(o, b)  <-  min(0, (1 - eta * lambda) * phi(o, b) + eta * g(o, b))

for operation o and level bin b, with u uniform and g the mean score of the batch's samples with (o, b), counted from
that of the weakest transformations where they are below the batch's mean. The bound at 0 is the point of the method:
what does not harm keeps its share, since a large s_i only says what helps in the next step. For the same reason a few
cells with large scores must not make all others look harmful: they raise the batch's mean, and the weakest
transformations fall below it as all others do. What is not worse than they are does no harm.

s_i is measured under the present q, so what is drawn rarely no longer disturbs the measurement of the rest. With
`inputs`, phi depends on the image too: phi(o, b | x) = min(0, phi(o, b) + V(o, b) . h(x)), with V learned from the same
scores and shrunk to 0 where it is not more than chance. `docs/algorithm.md` has the reasons. Related: Mueller,
Biedenkapp and Hutter, "In-Loop Meta-Learning with Gradient-Alignment Reward" (arXiv 2102.03275); DeepAA (Zheng et al.,
ICLR 2022).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..transforms.space import OperationSpace
from ..transforms.transformation import Transformation
from .level_sampler import LOWEST, LevelSampler
from .levels import context_cells
from .sampler import Observation

LARGEST_SCORE = 3.0  # standard deviations; limits the influence of a single outlier of s_i
ENOUGH = 5.0  # observations; a level with fewer has no effect of its own yet
RUNNING_MEMORY = 20.0  # iterations with a hypergradient that the running count and sum of a cell average
EVIDENCE = 2.0  # standard errors by which an operation's effects must differ between images more than chance
PRIOR_COUNT = 2.0  # observations; a rare cell's few scores do not move phi far
THINNED = 0.5  # of a uniform draw's frequency


class Effects(NamedTuple):
    """Estimated effects, in standard deviations of s_i over a batch.

    Attributes:
        values: float64 [groups], the estimated effect of each operation and level.
        operations: standard deviation of the operations' true effects.
        levels: standard deviation of the levels' true effects within an operation.
    """

    values: Tensor
    operations: float
    levels: float


def estimate_effects(counts: Tensor, sums: Tensor, squares: Tensor, operation_of: Tensor) -> Effects:
    """Empirical Bayes estimates: each mean is shrunk according to how much the means differ beyond chance.

    An operation's mean is shrunk towards 0 (the batch's), a level's deviation from its operation's mean towards 0. The
    variance of the true effects is the variance of the means less their sampling variance; if nothing differs beyond
    chance, all effects are 0. Source: James and Stein (1961), in Efron and Morris's (1975) form.

    Args:
        counts: float64 [groups], observations of each value; older ones have smaller weights.
        sums: float64 [groups], of their scores (mean 0 and deviation 1 over a batch).
        squares: float64 [groups], sums of the observations' squared weights; a mean's variance is squares / counts^2.
        operation_of: int64 [groups].
    """
    size = int(operation_of.max()) + 1

    def by_operation(values: Tensor) -> Tensor:
        return torch.zeros(size, dtype=torch.float64).index_add_(0, operation_of, values)

    several = torch.bincount(operation_of, minlength=size)[operation_of] > 1
    seen = counts > ENOUGH
    mean = sums / counts.clamp(min=1e-9)
    variance = squares / counts.clamp(min=1e-9) ** 2
    whole = by_operation(counts).clamp(min=1e-9)
    operation_mean, operation_variance = by_operation(sums) / whole, by_operation(squares) / whole**2
    between = float((operation_mean**2 - operation_variance).mean().clamp(min=0))
    shrunk = operation_mean * between / (between + operation_variance + 1e-12)

    deviation = mean - operation_mean[operation_of]
    noise = (variance - operation_variance[operation_of]).clamp(min=1e-9)
    told = several & seen
    within = float((deviation[told] ** 2 - noise[told]).mean().clamp(min=0)) if told.any() else 0.0
    level = torch.where(told, deviation * within / (within + noise), 0.0)
    return Effects(shrunk[operation_of] + level, math.sqrt(between), math.sqrt(within))


def _shrunk(values: Tensor, noise: Tensor) -> Tensor:
    """Values float64 [n, m], each row shrunk towards 0 by how much its mean square exceeds the sampling variances."""
    error = EVIDENCE * math.sqrt(2 / values.shape[1]) * noise.mean(1)  # of the mean of as many chi-squared values
    true = ((values**2).mean(1) - noise.mean(1) - error).clamp(min=0)[:, None]
    return values * true / (true + noise).clamp(min=1e-30)


class AlignmentSampler(LevelSampler):
    """Learns a distribution over operations and signed levels from s_i; both positions are drawn from it.

    Args:
        space: the operations.
        bins: level bins of each direction.
        strength: kappa; 0 always draws uniformly.
        rate: eta, the step of phi.
        decay: lambda; phi decays to 1/e in 1 / (rate * decay) updates without evidence.
        iterations: of the whole run, which `STAGES` equal shares record.
        start: float [K, 2 * bins], at most 0: `log_levels` at the end of another run; None starts uniform.
        inputs: D, how many numbers h(x) describe an image before augmentation; 0 for draws that do not see images.
        start_effects: float [D, K, 2 * bins]: `sample_effects` of another run; None starts at 0.

    Attributes:
        effects: how much the recent scores differ beyond chance; None before the first hypergradient.
    """

    def __init__(
        self,
        space: OperationSpace,
        bins: int = 4,
        strength: float = 3.0,
        rate: float = 0.1,
        decay: float = 0.02,
        iterations: int = 600,
        start: Tensor | None = None,
        inputs: int = 0,
        start_effects: Tensor | None = None,
    ) -> None:
        super().__init__(space, bins, iterations, start)
        self.strength, self.rate, self.decay, self.inputs = strength, rate, decay, inputs
        self.moving = (*LevelSampler.moving, "running", "running_sums", "counts", "sums", "squares")
        groups = self.grid.groups
        # How often a batch has a cell, and the sum of its scores; a count of -1: no update yet.
        self._running = torch.full((groups,), -1.0, dtype=torch.float64)
        self._running_sums = torch.zeros(groups, dtype=torch.float64)
        # For `effects`: observations, their scores and squared weights; older ones count less.
        self._counts, self._sums, self._squares = torch.zeros(3, groups, dtype=torch.float64)
        if inputs:
            self.moving += ("seen", "seen_variance")  # V, and its sampling variance
        self._seen, self._seen_variance = torch.zeros(2, groups, inputs, dtype=torch.float64)
        if start_effects is not None:
            self._seen = torch.stack([self.shared(table) for table in start_effects.double()], 1)

    @property
    def sample_effects(self) -> Tensor | None:
        """V, float64 [D, K, 2 * bins], shrunk; None for draws that do not see images.

        V is a sum of noisy scores. As in `estimate_effects`, an operation's mean over its levels is shrunk, and each
        level's deviation from it. The variance of the true values is what their mean square exceeds the sampling
        variance by, less `EVIDENCE` standard errors of that difference, for each operation by itself. An operation
        whose effect does not depend on the image has V = 0.
        """
        if not self.inputs:
            return None
        owner, noise = self.grid.operation_of, self._seen_variance
        sizes = torch.bincount(owner, minlength=self.grid.operations).double()[:, None]

        def mean(values: Tensor) -> Tensor:
            return torch.zeros(len(sizes), values.shape[1], dtype=torch.float64).index_add_(0, owner, values) / sizes

        operations = _shrunk(mean(self._seen), mean(noise) / sizes)
        deviations = self._seen - mean(self._seen)[owner]
        levels = torch.zeros_like(deviations)
        for operation in range(len(sizes)):
            own = owner == operation
            if own.sum() > 1:
                rows = (deviations[own].reshape(1, -1), (noise[own] * (1 - 1 / sizes[operation])).reshape(1, -1))
                levels[own] = _shrunk(*rows).reshape(-1, self.inputs)
        found = operations[owner] + levels
        return found[self.grid.group].permute(2, 0, 1).contiguous()

    def turn(self, change: Tensor) -> None:
        """Express V in other coordinates of h(x), so that V . h(x) stays what it was as nearly as it can.

        Args:
            change: float [new D, old D], the mean over images of new h(x) times old h(x).
        """
        change = change.double().cpu()
        self._seen = self._seen @ change.T
        self._seen_variance = self._seen_variance @ (change**2).T

    def sample(
        self,
        batch: int,
        generator: torch.Generator,
        progress: float | None = None,
        context: Tensor | None = None,
    ) -> Transformation:
        """As in `LevelSampler`; without a context all images have the data set's q."""
        effects = None if context is None else self.sample_effects
        if context is None or effects is None:
            return super().sample(batch, generator)
        cells = context_cells(self.log_levels, effects, context, self.strength)
        return self.grid.draw(cells.flatten(1), batch, generator)

    def learn(self, observation: Observation) -> None:
        """Update phi, and V, by the s_i of an iteration with a hypergradient."""
        if observation.alignment is None or observation.rows is None:
            return
        rows = observation.rows
        context = None if observation.context is None else observation.context[rows.cpu()].double()
        self._learn(observation.code[rows].cpu(), observation.alignment.detach().double().cpu(), context)

    def _learn(self, code: Tensor, alignment: Tensor, context: Tensor | None) -> None:
        deviation = alignment.std(correction=0)
        if not bool(deviation > 0) or not bool(alignment.isfinite().all()):
            return  # all s_i are equal, or the step will be rejected as not finite
        scores = ((alignment - alignment.mean()) / deviation).clamp(-LARGEST_SCORE, LARGEST_SCORE)
        values = self.values_of(code)
        drawn = torch.bincount(values, minlength=self.grid.groups).double()
        summed = torch.zeros_like(self._phi).index_add_(0, values, scores.repeat(2))
        first = bool(self._running[0] < 0)
        self._running = drawn if first else self._running.lerp(drawn, 1 / RUNNING_MEMORY)
        self._running_sums = summed if first else self._running_sums.lerp(summed, 1 / RUNNING_MEMORY)
        weakest = self.grid.weakest
        harmless = (self._running_sums[weakest].sum() / self._running[weakest].sum().clamp(min=1e-9)).clamp(max=0)
        keep = 1 - self.rate * self.decay
        step = self.rate * (summed - harmless * drawn) / (self._running + PRIOR_COUNT)
        self._phi = (keep * self._phi + step).clamp(LOWEST, 0)
        if context is not None and self.inputs:
            moved = (scores[:, None] * context).repeat(2, 1)
            each = self.rate / (self._running + PRIOR_COUNT)[:, None]
            self._seen = keep * self._seen + each * torch.zeros_like(self._seen).index_add_(0, values, moved)
            noise = torch.zeros_like(self._seen).index_add_(0, values, moved**2)
            self._seen_variance = keep**2 * self._seen_variance + each**2 * noise
        self._counts.mul_(keep).add_(drawn)
        self._squares.mul_(keep**2).add_(drawn)
        self._sums.mul_(keep).add_(summed)

    @property
    def effects(self) -> Effects | None:
        """How much operations and levels differ in the scores that phi still remembers; None before the first."""
        if not bool(self._counts.any()):
            return None
        return estimate_effects(self._counts, self._sums, self._squares, self.grid.operation_of)

    def figures(self) -> dict[str, float]:
        """Figures for the bundle: spread of the effects beyond chance, and share of cells that are drawn rarely."""
        relative = self.cells * self.cells.numel()
        found, effects = {"thinned_share": float((relative < THINNED).double().mean())}, self.effects
        if effects is not None:
            found |= {"operation_effects": effects.operations, "level_effects": effects.levels}
        return found

    def warnings(self) -> list[str]:
        """What a user should know before trusting what was learned."""
        effects = self.effects
        if effects is None or effects.operations + effects.levels > 0:
            return []
        return [
            "no operation or level differs from the others beyond chance: what is drawn less often is so by chance; "
            "search longer, raise batch_size and validation_batch_size, or lower alignment_strength"
        ]
