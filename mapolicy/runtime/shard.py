"""The rows of a batch that one process computes."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Rows `first` to `first + count` (exclusive) of a batch of `whole` rows.

    Random numbers are drawn for the whole batch and then sliced, so that the images do not depend on the number of
    processes.
    """

    first: int
    count: int
    whole: int

    def of(self, rows: Tensor, dim: int = 0) -> Tensor:
        """This shard's rows of a tensor with all of the batch's rows along `dim`; a view."""
        return rows.narrow(dim, self.first, self.count)


def whole_batch(count: int) -> Shard:
    """The shard that is the whole batch of `count` rows."""
    return Shard(0, count, count)
