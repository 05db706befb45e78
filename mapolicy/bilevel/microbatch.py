"""A batch in micro-batches: its rows, and the passes of a network over them, one micro-batch after the other."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..models.features import running_statistics_kept
from .forward_mode import Recording


@dataclass(frozen=True)
class Batch:
    """Samples of one process, or a micro-batch of them.

    Attributes:
        images: float [n, C, H, W], augmented and normalised.
        labels: int64 [n].
        embedding: float [n, 2K], of the images' transformations.
        features: float [n, F] of a frozen extractor; None takes the task network's own.
        noise_seed: of the network's own noise.
    """

    images: Tensor
    labels: Tensor
    embedding: Tensor
    features: Tensor | None
    noise_seed: int

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, share: float) -> "Batch":
        """The first samples, `share_of` them; a batch is in random order."""
        return self._rows(0, share_of(len(self), share), self.noise_seed)

    def divided(self, count: int, rank: int) -> list["Batch"]:
        """Divide into `count` micro-batches of equal size, in order; each, in each process, draws its own noise.

        Raises:
            UsageError: the batch is not divisible by `count`.
        """
        size, rest = divmod(len(self), count)
        if rest:
            raise UsageError("accumulate", f"{count} does not divide {len(self)} samples", "set a divisor")
        # Two seeds each: of the training and of the meta-validation batch.
        return [
            self._rows(number * size, size, self.noise_seed + 2 * (rank * count + number)) for number in range(count)
        ]

    def _rows(self, first: int, count: int, noise_seed: int) -> "Batch":
        rows = slice(first, first + count)
        features = None if self.features is None else self.features[rows]
        return Batch(self.images[rows], self.labels[rows], self.embedding[rows], features, noise_seed)


def share_of(count: int, share: float) -> int:
    """The number of samples in a share of `count`, at least 2, because batch normalisation needs 2."""
    return max(2, round(count * share))


def joined(batches: Sequence[Batch], name: str) -> Tensor:
    """One of the batches' tensors, all rows in order."""
    tensors: list[Tensor] = [getattr(batch, name) for batch in batches]
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]


@dataclass(frozen=True)
class Forward:
    """A forward of one micro-batch.

    Attributes:
        losses: float [n], with their graph.
        features: float [n, F].
        recording: what the forward-mode pass reuses, if requested.
    """

    losses: Tensor
    features: Tensor
    recording: Recording | None


@dataclass(frozen=True)
class FirstPass:
    """The result of the first pass over a batch. Weights depend on all samples' features, so these come first.

    Attributes:
        batches: the micro-batches.
        features: float [n, F], of all of them.
        losses: float [n] with their graph, for a single micro-batch; None for several, since only one graph is kept at
            a time.
        values: float [n], the losses of all of them without a graph; None where no forward was needed.
        recording: for a single micro-batch, if requested.
        statistics_moved: whether the network's running statistics have been updated.
    """

    batches: list[Batch]
    features: Tensor
    losses: Tensor | None
    recording: Recording | None
    statistics_moved: bool
    values: Tensor | None = None

    def split(self, values: Tensor) -> list[Tensor]:
        """One number for each sample, float [n], by micro-batch."""
        return list(values.split([len(batch) for batch in self.batches]))


Compute = Callable[[Batch, bool], Forward]  # of a micro-batch; the flag asks for a recording


def first_pass(compute: Compute, batches: list[Batch], records: bool = False, with_losses: bool = False) -> FirstPass:
    """Compute all samples' features; this updates the running statistics, unless no forward is needed.

    A single micro-batch gets its one forward, with the graph. For several, the features come from forwards without a
    graph, or from a frozen extractor.

    Args:
        compute: the forward of a micro-batch.
        batches: the micro-batches.
        records: whether the forward of a single micro-batch is recorded.
        with_losses: whether the losses are needed, also where a frozen extractor gives the features.
    """
    if len(batches) == 1:
        found = compute(batches[0], records)
        return FirstPass(batches, found.features, found.losses, found.recording, True, found.losses.detach())
    given = [batch.features for batch in batches if batch.features is not None]
    if given and not with_losses:
        return FirstPass(batches, torch.cat(given), None, None, False)
    with torch.no_grad():
        parts = [compute(batch, False) for batch in batches]
    features, losses = (torch.cat([getattr(part, name) for part in parts]) for name in ("features", "losses"))
    return FirstPass(batches, features, None, None, True, losses)


def losses_of_each(
    network: nn.Module, compute: Compute, batches: Sequence[Batch], statistics_moved: bool
) -> Iterator[Tensor]:
    """The losses float [n] of each micro-batch with their graph, by one forward of each, one after the other.

    Args:
        network: its running statistics are updated, unless they already were.
        compute: the forward of a micro-batch.
        batches: the micro-batches.
        statistics_moved: whether an earlier pass over this batch has updated the running statistics.
    """
    for batch in batches:
        with running_statistics_kept(network) if statistics_moved else nullcontext():
            losses = compute(batch, False).losses
        yield losses
        del losses
