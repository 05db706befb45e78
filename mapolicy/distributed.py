"""Processes that share a run: each has a part of every batch, and what is summed over a batch is summed over all.

All communication goes through a `Communicator`. A process alone has one too, for which every sum is its own: code that
holds one does not ask how many they are. Rank 0 writes; the others hold the same state.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import EnvironmentFault, InputError
from .runtime import rank_environment as launch
from .runtime.shard import Shard

BUCKET = 2**23  # numbers that travel together; a network's small tensors would cost a latency each
ORPHAN_LOOKS, ORPHAN_PATIENCE = 0.5, 8.0  # seconds between looks at the parent, and to save in when it has gone


class Communicator:
    """Of a process alone: what it has is all there is.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        sent: bytes that this process has given into sums, gatherings and broadcasts.
    """

    rank, size, sent = 0, 1, 0

    def shard(self, whole: int) -> Shard:
        """This process's rows of a batch; `size` divides `whole`."""
        count = whole // self.size
        return Shard(self.rank * count, count, whole)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """For tensors of the same shapes in every process, their sums over the processes; without a graph."""
        return list(tensors)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Sets each tensor to its mean over the processes."""

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes in the order of their ranks; this one's keep their graph.

        A function of all rows that every process computes alike has, by each process's own rows, its whole derivative:
        what theta gets from it is then a sum over the processes.
        """
        return rows

    def largest(self, *numbers: int) -> list[int]:
        """The largest of each number over the processes."""
        return list(numbers)

    def broadcast(self, content: bytes) -> bytes:
        """Rank 0's bytes, in every process."""
        return content

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """Within it the first process of each machine is before the others: what it fetches they find."""
        yield

    def check_equal(self, what: str, text: str) -> None:
        """All processes have the same text.

        Raises:
            InputError: this one has not the one of rank 0.
        """


ALONE = Communicator()


class Group(Communicator):
    """Of the processes in torch's default process group: NCCL between GPUs, gloo between CPUs."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.sent = 0
        nccl = dist.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """As `Communicator.sum`; every process gets the same bits."""
        summed = [torch.empty_like(tensor) for tensor in tensors]
        for bucket in _buckets(tensors):
            flat = torch.cat([tensors[place].detach().reshape(-1) for place in bucket]).to(self._device)
            self._reduce(flat)
            for place, part in zip(bucket, flat.split([tensors[place].numel() for place in bucket]), strict=True):
                summed[place].copy_(part.view(summed[place].shape))
        return summed

    def average(self, tensors: Sequence[Tensor]) -> None:
        """As `Communicator.average`."""
        for tensor, total in zip(tensors, self.sum(tensors), strict=True):
            tensor.copy_(total / self.size)

    def gather(self, rows: Tensor) -> Tensor:
        """As `Communicator.gather`; all have as many rows."""
        own = rows.detach().contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        self.sent += own.nbytes
        with peer_faults():
            dist.all_gather(found, own)
        return torch.cat([rows if rank == self.rank else other for rank, other in enumerate(found)])

    def largest(self, *numbers: int) -> list[int]:
        """As `Communicator.largest`."""
        values = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        self._reduce(values, dist.ReduceOp.MAX)
        return values.tolist()

    def broadcast(self, content: bytes) -> bytes:
        """As `Communicator.broadcast`."""
        (length,) = self.largest(len(content) if self.rank == 0 else 0)
        values = torch.zeros(length, dtype=torch.uint8)
        if self.rank == 0 and length:
            values = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        values = values.to(self._device)
        self.sent += values.nbytes
        with peer_faults():
            dist.broadcast(values, src=0)
        return values.cpu().numpy().tobytes()

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """As `Communicator.local_main_process_first`."""
        first = launch.local_rank() == 0
        if not first:
            self.largest(0)
        yield
        if first:
            self.largest(0)

    def check_equal(self, what: str, text: str) -> None:
        """As `Communicator.check_equal`."""
        if self.broadcast(text.encode()).decode() != text:
            raise InputError(f"rank {self.rank}", f"{what} is not that of rank 0", "give all processes the same")

    def _reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        self.sent += values.nbytes
        with peer_faults():
            dist.all_reduce(values, operation)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Places of tensors that travel together: of one type, in their order, about `BUCKET` numbers."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[int] = []
        numbers = 0
        for place, tensor in enumerate(tensors):
            if tensor.dtype != dtype:
                continue
            if bucket and numbers + tensor.numel() > BUCKET:
                yield bucket
                bucket, numbers = [], 0
            bucket.append(place)
            numbers += tensor.numel()
        yield bucket


def communicator() -> Communicator:
    """Of torch's default process group, if this process is in one of several, else `ALONE`."""
    grouped = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return Group() if grouped else ALONE


@contextmanager
def peer_faults() -> Iterator[None]:
    """Turns what torch says of a process that has ended or does not answer into an error of ours.

    Raises:
        EnvironmentFault: another process has ended or hangs.
    """
    try:
        yield
    except RuntimeError as problem:
        why = "another process of this run has ended, or did not answer within patience_seconds"
        remedy = "see what it said; --resume goes on from the last checkpoint"
        raise EnvironmentFault(f"rank {dist.get_rank()}", why, remedy) from problem


@contextmanager
def process_group(device: torch.device, patience: float) -> Iterator[Communicator]:
    """Within it this process is in one group with those that the launcher has started, if one has.

    Args:
        device: kind of device that the run uses; on CUDA each process takes the one of its local rank.
        patience: seconds to wait for another process before giving the run up.

    Raises:
        EnvironmentFault: the others cannot be reached.
    """
    if launch.processes() == 1 or dist.is_initialized():
        yield communicator()
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(launch.local_rank())
    threading.Thread(target=_stop_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=patience))
    except (RuntimeError, ValueError) as problem:
        reason = str(problem).strip().split("\n")[0][:100]
        raise EnvironmentFault(
            f"rank {launch.rank()}", f"the other processes cannot be reached ({reason})", "look at the launcher"
        ) from None
    yield communicator()
    # Not after an error: a group that has lost a member would be waited for.
    dist.destroy_process_group()


def _stop_with_parent(parent: int) -> None:
    """Ask this process to stop when the launcher has gone, which would otherwise leave it behind; then end it."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_PATIENCE)
    os._exit(128 + signal.SIGTERM)
