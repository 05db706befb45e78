"""What the samplers of operations and levels have in common; they differ in what they learn from."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..transforms.space import OperationSpace
from ..transforms.transformation import Transformation
from .levels import LevelGrid, marginals
from .sampler import Observation

STAGES = 20  # tables that a run records, so that another run can follow the same course
LOWEST = -100.0  # of phi; well within what a bundle may hold


class LevelSampler(ABC):
    """Draws both positions of a transformation from a table phi over operations and signed levels, and learns it.

    Args:
        space: the operations.
        bins: level bins of each direction.
        iterations: of the whole run, which `STAGES` equal shares record.
        start: float [K, 2 * bins], phi at the end of another run; None starts uniform.

    Attributes:
        grid: which cells share a value.
        inputs: D, how many numbers h(x) describe an image before augmentation; 0 for draws that do not see images.
        strength: kappa; q goes as exp(strength * log_levels).
        moving: what `state` holds: names of attributes without the underscore before them.
    """

    inputs: int = 0
    strength: float = 1.0
    moving: tuple[str, ...] = ("phi", "courses", "stage_counts", "raw_sums", "raw_counts")

    def __init__(self, space: OperationSpace, bins: int, iterations: int, start: Tensor | None) -> None:
        self.grid = LevelGrid(space, bins)
        self.iterations, self.iteration = iterations, 0
        groups, pairs = self.grid.groups, self.grid.operations**2
        self._phi = torch.zeros(groups, dtype=torch.float64) if start is None else self.shared(start.double())
        self._raw_sums, self._raw_counts = torch.zeros(2, pairs, dtype=torch.float64)
        self._courses = torch.zeros(STAGES, groups, dtype=torch.float64)
        self._stage_counts = torch.zeros(STAGES, dtype=torch.int64)

    def shared(self, table: Tensor) -> Tensor:
        """The value of each group, from a table [K, 2 * bins] in which a group's cells are equal."""
        values = torch.empty(self.grid.groups, dtype=torch.float64)
        values[self.grid.group] = table
        return values

    @abstractmethod
    def learn(self, observation: Observation) -> None:
        """Update phi by an iteration, where it has what this sampler learns from."""

    def table(self, phi: Tensor) -> Tensor:
        """Values float64 [groups] as a bundle's log levels, float64 [K, 2 * bins], at most 0."""
        return phi[self.grid.group]

    @property
    def log_levels(self) -> Tensor:
        """The present table, float64 [K, 2 * bins], at most 0; a new tensor."""
        return self.table(self._phi)

    @property
    def cells(self) -> Tensor:
        """q, the probabilities of the draws, float64 [K, 2 * bins], sums to 1."""
        return torch.softmax(self.strength * self._phi[self.grid.group].flatten(), 0).reshape(self.grid.group.shape)

    @property
    def probabilities(self) -> Tensor:
        """p_jk, float64 [K, K]: the product of q's marginals."""
        return marginals(self.cells)

    @property
    def means(self) -> Tensor:
        """The mean raw output of the policy network for each pair, float64 [K, K]; 1/2 for a pair without one."""
        means = torch.where(self._raw_counts > 0, self._raw_sums / self._raw_counts.clamp(min=1), 0.5)
        return means.reshape(self.grid.operations, self.grid.operations)

    @property
    def stages(self) -> Tensor:
        """The mean of phi in each share of the run so far, float64 [stages, K, 2 * bins]; [1, ...] before the first."""
        reached = self._stage_counts > 0
        if not reached.any():
            return self.log_levels[None]
        courses = self._courses[reached] / self._stage_counts[reached, None]
        return torch.stack([self.table(course) for course in courses])

    @property
    def sample_effects(self) -> Tensor | None:
        """How images change the table, float64 [D, K, 2 * bins]; None for draws that do not see images."""
        return None

    def sample(
        self,
        batch: int,
        generator: torch.Generator,
        progress: float | None = None,
        context: Tensor | None = None,
    ) -> Transformation:
        """Draw `batch` transformations on the CPU from the present q.

        Args:
            batch: how many.
            generator: on the CPU.
            progress: not used: q is that of the present iteration.
            context: h(x) of the images, float [batch, D], for a sampler that sees them.
        """
        return self.grid.draw(self.cells.flatten(), batch, generator)

    @property
    def codes(self) -> int:
        """How many different pairs of cells there are."""
        return self.grid.group.numel() ** 2

    def code(self, transformation: Transformation) -> Tensor:
        """Each transformation's pair of cells as one number, int64 [n]."""
        first = self.grid.cell(transformation.first, transformation.magnitude1)
        second = self.grid.cell(transformation.second, transformation.magnitude2)
        return first * self.grid.group.numel() + second

    def values_of(self, code: Tensor) -> Tensor:
        """The groups of both cells of each code, int64 [2 * n]: all first cells, then all second ones."""
        cells = torch.cat([code // self.grid.group.numel(), code % self.grid.group.numel()])
        return self.grid.group.flatten()[cells]

    def pair(self, code: Tensor) -> Tensor:
        """The pair of operations of each code: its position in the flattened p_jk, int64 [n]."""
        first, second = code // self.grid.group.numel(), code % self.grid.group.numel()
        return first // self.grid.bins * self.grid.operations + second // self.grid.bins

    def observe(self, observation: Observation) -> None:
        """Learn from an iteration and record it."""
        self.learn(observation)
        if observation.raw is not None:
            pair = self.pair(observation.code).cpu()
            self._raw_sums.index_add_(0, pair, observation.raw.detach().double().cpu())
            self._raw_counts.index_add_(0, pair, torch.ones_like(pair, dtype=torch.float64))
        stage = min(STAGES - 1, self.iteration * STAGES // max(1, self.iterations))
        self._courses[stage] += self._phi
        self._stage_counts[stage] += 1
        self.iteration += 1

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, except the number of the iteration."""
        return {name: getattr(self, f"_{name}") for name in self.moving}

    def restore(self, state: dict[str, Tensor], iteration: int) -> None:
        """Set the state as it was after `iteration` iterations."""
        for name in self.moving:
            setattr(self, f"_{name}", state[name].clone())
        self.iteration = iteration

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """Figures for the bundle."""

    @abstractmethod
    def warnings(self) -> list[str]:
        """What a user should know before trusting what was learned."""
