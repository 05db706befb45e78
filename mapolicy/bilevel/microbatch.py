"""A batch in parts, one after the other: its rows, its forwards, and what is kept between two uses of them."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..models.features import running_statistics_kept
from .forward_mode import Recording


@dataclass(frozen=True)
class Batch:
    """Images float [n, C, H, W], labels int64 [n], embedding float [n, 2K], features float [n, F] or None."""

    images: Tensor
    labels: Tensor
    embedding: Tensor
    features: Tensor | None
    noise_seed: int

    def part(self, share: float) -> "Batch":
        """The first of them; a batch is in random order."""
        return self._rows(0, share_of(len(self.labels), share), self.noise_seed)

    def parts(self, count: int, rank: int) -> list["Batch"]:
        """This many of equal size, in order; each part of each process draws noise of its own.

        Raises:
            UsageError: the batch cannot be divided so.
        """
        size, rest = divmod(len(self.labels), count)
        if rest:
            raise UsageError("accumulate", f"{count} does not divide {len(self.labels)} samples", "set a divisor")
        # Two seeds each: of the training and of the meta-validation batch.
        return [
            self._rows(number * size, size, self.noise_seed + 2 * (rank * count + number)) for number in range(count)
        ]

    def _rows(self, first: int, count: int, noise_seed: int) -> "Batch":
        rows = slice(first, first + count)
        features = None if self.features is None else self.features[rows]
        return Batch(self.images[rows], self.labels[rows], self.embedding[rows], features, noise_seed)


def share_of(count: int, share: float) -> int:
    """So many of `count`, two at least."""
    return max(2, round(count * share))  # batch normalisation needs two


@dataclass(frozen=True)
class Forward:
    """A batch's forward: losses float [n] with their graph, features float [n, F], perhaps what was computed."""

    losses: Tensor
    features: Tensor
    recording: Recording | None


class Forwards:
    """The forwards of a batch in parts, as often as they are needed; the running statistics move in the first one.

    The graph of a batch that comes in one part is kept from one use to the next. Of several parts only one has a graph
    at a time, so that the features, which weigh all of them, need a forward before: without a graph.

    Args:
        network: whose running statistics move.
        forward: of a part; told whether to record what is computed.
        parts: of the batch.
        records: whether the forward of a single part is recorded.
    """

    def __init__(
        self, network: nn.Module, forward: Callable[[Batch, bool], Forward], parts: list[Batch], records: bool = False
    ) -> None:
        self.parts, self._network, self._compute, self._moved = parts, network, forward, False
        self._kept: Tensor | None = None
        self.recording: Recording | None = None
        frozen = [part.features for part in parts if part.features is not None]
        if len(parts) == 1:
            found = self._forward(parts[0], records)
            self._kept, self.recording, seen = found.losses, found.recording, [found.features]
        elif frozen:
            seen = frozen
        else:
            with torch.no_grad():
                seen = [self._forward(part).features for part in parts]
            self._moved = True
        self.features = torch.cat(seen)
        self.images, self.embedding = (
            torch.cat([getattr(part, name) for part in parts]) if len(parts) > 1 else getattr(parts[0], name)
            for name in ("images", "embedding")
        )
        self.losses: list[Tensor] = []

    def graphs(self, keep: bool = False) -> Iterator[Tensor]:
        """The losses float [n] of each part with their graph, one part after the other.

        Args:
            keep: the graph of a single part will be needed once more.
        """
        self.losses = []
        for part in self.parts:
            losses = self._forward(part).losses if self._kept is None else self._kept
            self._kept = losses if keep and len(self.parts) == 1 else None
            self.losses.append(losses.detach())
            yield losses
            del losses
        self._moved = True

    def shares(self, rows: Tensor) -> list[Tensor]:
        """What each part has of one number for each sample."""
        return list(rows.split([len(part.labels) for part in self.parts]))

    def _forward(self, part: Batch, records: bool = False) -> Forward:
        with running_statistics_kept(self._network) if self._moved else nullcontext():
            forward = self._compute(part, records)
        self._moved = self._moved or len(self.parts) == 1
        return forward
