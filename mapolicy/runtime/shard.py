"""A process's share of a batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Rows `first` up to `first + count` of a batch of `whole` rows.

    Draws are made for the whole batch and then cut, so that its images do not depend on how it is divided.
    """

    first: int
    count: int
    whole: int

    def of(self, rows: Tensor, dim: int = 0) -> Tensor:
        """These rows of a tensor that has all of them along `dim`."""
        return rows.narrow(dim, self.first, self.count)


def whole_batch(count: int) -> Shard:
    """The whole batch."""
    return Shard(0, count, count)
