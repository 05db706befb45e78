"""A transformation is an ordered pair of operations with magnitudes; here a whole batch of them, one for each image."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..runtime.shard import Shard
from .functional import apply_operations
from .space import (
    DEFAULT_SPACE,
    EMBEDDING_OFFSET,
    EMBEDDING_WIDTH,
    EMBEDDING_WITHOUT_MAGNITUDE,
    HAS_MAGNITUDE,
    MAX_LEVEL,
    OPERATION_NAMES,
)


@dataclass(frozen=True)
class Transformation:
    """One transformation for each image of a batch: `first` is applied, then `second`.

    Source: MetaAugment (Zhou et al., AAAI 2021), section "Sample-Aware Data Augmentation".

    Attributes:
        first, second: int64 [B], positions in `OPERATIONS`.
        magnitude1, magnitude2: float32 [B] in [-10, 10]: the size is the level, the sign the direction, for operations
            that have one.
    """

    first: Tensor
    second: Tensor
    magnitude1: Tensor
    magnitude2: Tensor

    @classmethod
    def draw_magnitudes(cls, first: Tensor, second: Tensor, generator: torch.Generator) -> Self:
        """The transformation of these operations with levels uniform in [0, 10] and either direction equally likely."""
        batch = first.shape[0]
        levels = torch.rand(2, batch, generator=generator) * MAX_LEVEL
        signs = torch.randint(0, 2, (2, batch), generator=generator) * 2 - 1
        return cls(first, second, *(levels * signs))

    def __len__(self) -> int:
        return self.first.shape[0]

    def to(self, device: torch.device) -> "Transformation":
        """The same transformations on a device."""
        return Transformation(
            self.first.to(device, non_blocking=True),
            self.second.to(device, non_blocking=True),
            self.magnitude1.to(device, non_blocking=True),
            self.magnitude2.to(device, non_blocking=True),
        )

    def shard(self, shard: Shard) -> "Transformation":
        """The transformations of these rows of the batch."""
        return Transformation(
            shard.of(self.first), shard.of(self.second), shard.of(self.magnitude1), shard.of(self.magnitude2)
        )

    @property
    def pair(self) -> Tensor:
        """int64 [B]: the pair's position in the flattened p_jk, first * K + second."""
        return self.first * len(OPERATION_NAMES) + self.second

    def embed(self) -> Tensor:
        """The transformations as the policy network sees them, float32 [B, 2K].

        With operations counted from 0, column 2j holds 1 + the level of the first operation j, column 2k + 1 that of
        the second operation k, or 11 for an operation without magnitude; every other column is 0. Directions are
        not part of it.
        """
        has_magnitude = torch.tensor(HAS_MAGNITUDE, device=self.first.device)
        embedding = torch.zeros(len(self), EMBEDDING_WIDTH, device=self.first.device)
        rows = torch.arange(len(self), device=self.first.device)
        sides = ((0, self.first, self.magnitude1), (1, self.second, self.magnitude2))
        for side, operation, magnitude in sides:
            value = torch.where(
                has_magnitude[operation], magnitude.abs() + EMBEDDING_OFFSET, EMBEDDING_WITHOUT_MAGNITUDE
            )
            embedding[rows, 2 * operation + side] = value
        return embedding

    def apply(self, images: Tensor, space: str = DEFAULT_SPACE, fill: Tensor | None = None) -> Tensor:
        """The transformed images, uint8 [B, C, H, W].

        Args:
            images: uint8 [B, C, H, W], left as they are.
            space: name of the operation space.
            fill: uint8 [C], colour of pixels that come from outside; None is black.
        """
        steps = [(self.first, self.magnitude1), (self.second, self.magnitude2)]
        return apply_operations(images, steps, space, fill)
