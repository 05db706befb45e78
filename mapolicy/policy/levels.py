"""A distribution over operations and their levels: what the alignment sampler learns, and what a bundle draws from.

The levels of each direction are divided into equally many bins, so a table [K, bins] has a cell for each operation and
signed level. Cells that the space does not distinguish share one value: both directions of an operation without a
direction, all bins of one without a magnitude. The draws may also depend on the image before augmentation
(`SampleEffects`).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..transforms.space import MAX_LEVEL, OperationSpace
from ..transforms.transformation import Transformation


class LevelGrid:
    """The cells of a table over a space's operations and signed levels.

    Args:
        space: the operations.
        bins: number for one direction, from level 0 to 10; a row of the table has twice as many.

    Attributes:
        space: the operations.
        operations: K.
        bins: number in a whole row, both directions.
        group: int64 [K, bins], the index of each cell's value.
        groups: how many values there are.
        operation_of: int64 [groups], the operation of each value.
        weakest: bool [groups], the values of the weakest transformations: Identity, and of each operation the bins at
            the level that changes an image least.
    """

    def __init__(self, space: OperationSpace, bins: int) -> None:
        self.space, self.operations, self.bins = space, space.size, 2 * bins
        rows, count = [], 0
        for spread in space.ranges.values():
            if spread is None:
                row = torch.zeros(2 * bins, dtype=torch.int64)
            elif spread.signed:
                row = torch.arange(2 * bins)
            else:
                row = torch.cat([torch.arange(bins).flip(0), torch.arange(bins)])
            rows.append(row + count)
            count += int(row.max()) + 1
        self.group = torch.stack(rows)
        self.groups = count
        self.operation_of = torch.empty(count, dtype=torch.int64)
        self.operation_of[self.group] = torch.arange(self.operations)[:, None].expand(-1, 2 * bins)
        edges = torch.linspace(-MAX_LEVEL, MAX_LEVEL, 2 * bins + 1, dtype=torch.float64).abs()
        self.weakest = torch.zeros(count, dtype=torch.bool)
        for row, (name, spread) in zip(self.group, space.ranges.items(), strict=True):
            if spread is not None:
                low, high = torch.minimum(edges[:-1], edges[1:]), torch.maximum(edges[:-1], edges[1:])
                self.weakest[row] = (low <= spread.weakest) & (spread.weakest <= high)
            elif name == "Identity":
                self.weakest[row] = True

    def cell(self, operation: Tensor, magnitude: Tensor) -> Tensor:
        """The position of each draw in the flattened table.

        Args:
            operation: int64 [n].
            magnitude: float [n], signed levels in [-10, 10]; a level on an edge belongs to the bin above it.
        """
        width = 2 * MAX_LEVEL / self.bins
        place = ((magnitude.double() + MAX_LEVEL) / width).floor().long().clamp(0, self.bins - 1)
        return operation * self.bins + place

    def draw(self, probabilities: Tensor, batch: int, generator: torch.Generator) -> Transformation:
        """Draw transformations: both positions independently, levels uniform within their bins.

        Args:
            probabilities: float64 [K * bins] or [batch, K * bins], of the cells.
            batch: how many transformations.
            generator: on the CPU.
        """
        rows = probabilities.expand(2, -1) if probabilities.ndim == 1 else probabilities.repeat(2, 1)
        count = batch if probabilities.ndim == 1 else 1
        cells = torch.multinomial(rows, count, replacement=True, generator=generator).reshape(2, batch)
        share = torch.rand(2, batch, generator=generator)
        levels = ((cells % self.bins + share) * (2 * MAX_LEVEL / self.bins) - MAX_LEVEL).clamp(-MAX_LEVEL, MAX_LEVEL)
        first, second = cells // self.bins
        magnitude1, magnitude2 = levels
        return Transformation(first, second, magnitude1, magnitude2, self.space)


LARGEST_CONTEXT = 4.0  # standard deviations; limits what an unusual image can do


def class_context(labels: Tensor, classes: int) -> Tensor:
    """h(x) of each label, float32 [n, classes]: indicators of the classes, centred and of unit scale.

    Args:
        labels: int64 [n].
        classes: how many there are.
    """
    return math.sqrt(classes) * (F.one_hot(labels, classes).float() - 1 / classes)


@dataclass(frozen=True)
class FeatureDirections:
    """h(x) of an image: its deep feature along the leading directions of the training images' features.

    Attributes:
        center: float32 [F], the training images' mean feature.
        directions: float32 [D, F], scaled so that each coordinate has unit variance over the training images.
    """

    center: Tensor
    directions: Tensor

    @classmethod
    def leading(cls, features: Tensor, most: int) -> "FeatureDirections":
        """The directions in which these features vary most.

        A direction's sign is that of its largest entry, so equal features give equal directions.

        Args:
            features: float [n, F].
            most: directions; D is `most`, or F where that is smaller. Those without variance are 0.
        """
        features = features.double().cpu()
        center = features.mean(0)
        variances, vectors = torch.linalg.eigh((features - center).T @ (features - center) / len(features))
        count = min(most, features.shape[1])
        variances, vectors = variances.flip(0)[:count], vectors.flip(1).T[:count]
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        varies = variances > 1e-9 * variances[0].clamp(min=1e-30)
        scale = torch.where(varies, variances.clamp(min=1e-30).rsqrt(), 0.0)
        return cls(center.float(), (vectors * largest.sign() * scale[:, None]).float())

    def context(self, features: Tensor) -> Tensor:
        """h(x), float32 [n, D], of deep features float [n, F]."""
        own = (features.float() - self.center.to(features.device)) @ self.directions.T.to(features.device)
        return own.clamp(-LARGEST_CONTEXT, LARGEST_CONTEXT)


@dataclass(frozen=True)
class SampleEffects:
    """How much an image's h(x) changes the table of levels: V of phi(o, b | x) = min(0, phi(o, b) + V(o, b) . h(x)).

    Attributes:
        table: float [D, K, bins].
        features: how h(x) follows from the deep feature; None where h(x) is the class.
    """

    table: Tensor
    features: FeatureDirections | None = None


class StagedLevels:
    """The draws of a bundle: a table for each stage of a run; stages have equal shares of the run.

    q(o, b) is proportional to exp(strength * log_levels(o, b)): 0 leaves a cell as likely as in a uniform draw.

    Args:
        space: the operations.
        log_levels: float [stages, K, bins], at most 0.
        strength: kappa; 0 draws uniformly.
        effects: how images change the table; None where all images have the same draws.
    """

    def __init__(
        self, space: OperationSpace, log_levels: Tensor, strength: float, effects: SampleEffects | None = None
    ) -> None:
        self.grid = LevelGrid(space, log_levels.shape[2] // 2)
        self.log_levels, self.strength, self.effects = log_levels.double(), strength, effects

    def stage(self, progress: float | None) -> Tensor:
        """The table float64 [K, bins] at this share of the run; None averages the second half of the stages."""
        stages = len(self.log_levels)
        if progress is None:
            return self.log_levels[stages // 2 :].mean(0)
        return self.log_levels[min(stages - 1, int(progress * stages))]

    def cells(self, progress: float | None = None, context: Tensor | None = None) -> Tensor:
        """q, float64 [K, bins], sums to 1.

        Args:
            progress: share of the run; None averages the second half of the stages.
            context: h(x) float [n, D] of images; the result is then [n, K, bins]. None takes the data set's q.
        """
        table = self.stage(progress)
        if context is None or self.effects is None:
            return torch.softmax(self.strength * table.flatten(), 0).reshape(self.grid.group.shape)
        return context_cells(table, self.effects.table, context, self.strength)

    def relative(self, progress: float | None = None) -> Tensor:
        """How often each cell is drawn, over how often a uniform draw takes it; float64 [K, bins]."""
        cells = self.cells(progress)
        return cells * cells.numel()

    @property
    def probabilities(self) -> Tensor:
        """p_jk, float64 [K, K]: the product of the operations' marginals over the second half of a run."""
        return marginals(self.cells())

    def sample(
        self,
        batch: int,
        generator: torch.Generator,
        progress: float | None = None,
        context: Tensor | None = None,
    ) -> Transformation:
        """`batch` transformations on the CPU, for this share of the run and images with this h(x), float [batch, D]."""
        cells = self.cells(progress, context)
        return self.grid.draw(cells.flatten(-2), batch, generator)


def context_cells(table: Tensor, effects: Tensor, context: Tensor, strength: float) -> Tensor:
    """q for each image, float64 [n, K, bins]; each image's sum is 1.

    Args:
        table: phi, float [K, bins].
        effects: V, float [D, K, bins].
        context: h(x), float [n, D].
        strength: kappa.
    """
    own = torch.einsum("nd,dkb->nkb", context.double().cpu(), effects.double())
    phi = (table.double() + own).clamp(max=0)
    return torch.softmax(strength * phi.flatten(1), 1).reshape(phi.shape)


def marginals(cells: Tensor) -> Tensor:
    """p_jk float64 [K, K] of two independent draws from `cells` float64 [K, bins]."""
    operations = cells.sum(1)
    return operations[:, None] * operations
