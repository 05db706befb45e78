"""A transformation is an ordered pair of operations with magnitudes; here a whole batch of them, one for each image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..runtime.shard import Shard
from .functional import apply_operations
from .space import DEFAULT_SPACE, EMBEDDING_OFFSET, EMBEDDING_WITHOUT_MAGNITUDE, MAX_LEVEL, SPACES, OperationSpace


@dataclass(frozen=True)
class Transformation:
    """One transformation for each image of a batch: `first` is applied, then `second`.

    Source: MetaAugment (Zhou et al., AAAI 2021), section "Sample-Aware Data Augmentation".

    Attributes:
        first, second: int64 [B], positions in the space's operations; in the built-in spaces also in `OPERATIONS`.
        magnitude1, magnitude2: float32 [B] in [-10, 10]: the size is the level, the sign the direction, for operations
            that have one.
        space: the operations, K of them, and their ranges.
    """

    first: Tensor
    second: Tensor
    magnitude1: Tensor
    magnitude2: Tensor
    space: OperationSpace = SPACES[DEFAULT_SPACE]

    @classmethod
    def draw_magnitudes(
        cls,
        first: Tensor,
        second: Tensor,
        generator: torch.Generator,
        space: OperationSpace = SPACES[DEFAULT_SPACE],
    ) -> Self:
        """The transformation of these operations with levels uniform in [0, 10] and either direction equally likely."""
        batch = first.shape[0]
        levels = torch.rand(2, batch, generator=generator) * MAX_LEVEL
        signs = torch.randint(0, 2, (2, batch), generator=generator) * 2 - 1
        magnitude1, magnitude2 = levels * signs
        return cls(first, second, magnitude1, magnitude2, space)

    def __len__(self) -> int:
        return self.first.shape[0]

    def to(self, device: torch.device) -> "Transformation":
        """The same transformations on a device."""
        return self._each(lambda column: column.to(device, non_blocking=True))

    def shard(self, shard: Shard) -> "Transformation":
        """The transformations of these rows of the batch."""
        return self._each(shard.of)

    def followed_by(self, other: "Transformation") -> "Transformation":
        """These transformations and, after them, those of another batch of the same space."""
        names = ("first", "second", "magnitude1", "magnitude2")
        columns = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in names}
        return Transformation(**columns, space=self.space)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Transformation":
        names = ("first", "second", "magnitude1", "magnitude2")
        return Transformation(**{name: change(getattr(self, name)) for name in names}, space=self.space)

    @property
    def pair(self) -> Tensor:
        """int64 [B]: the pair's position in the flattened p_jk, first * K + second."""
        return self.first * self.space.size + self.second

    def embed(self) -> Tensor:
        """The transformations as the policy network sees them, float32 [B, 2K].

        With operations counted from 0, column 2j holds 1 + the level of the first operation j, column 2k + 1 that of
        the second operation k, or 11 for an operation without magnitude; every other column is 0. Directions are
        not part of it.
        """
        has_magnitude = torch.tensor(self.space.has_magnitude, device=self.first.device)
        embedding = torch.zeros(len(self), self.space.embedding_width, device=self.first.device)
        rows = torch.arange(len(self), device=self.first.device)
        sides = ((0, self.first, self.magnitude1), (1, self.second, self.magnitude2))
        for side, operation, magnitude in sides:
            value = torch.where(
                has_magnitude[operation], magnitude.abs() + EMBEDDING_OFFSET, EMBEDDING_WITHOUT_MAGNITUDE
            )
            embedding[rows, 2 * operation + side] = value
        return embedding

    def apply(self, images: Tensor, space: str | OperationSpace | None = None, fill: Tensor | None = None) -> Tensor:
        """The transformed images, uint8 [B, C, H, W].

        Args:
            images: uint8 [B, C, H, W], left as they are.
            space: other ranges of the same operations; None takes the transformation's space.
            fill: uint8 [C], colour of pixels that come from outside; None is black.
        """
        steps = [(self.first, self.magnitude1), (self.second, self.magnitude2)]
        return apply_operations(images, steps, self.space if space is None else space, fill)
