"""Data-parallel runs: each process computes a shard of every batch, and sums over a batch are sums over processes.

All communication goes through a `Communicator`. A single process has one too, whose sums are its own values, so the
callers do not depend on the number of processes. All processes hold the same state; rank 0 writes the files.
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
from typing_extensions import override

from .errors import EnvironmentFault, InputError
from .runtime import rank_environment
from .runtime.shard import Shard

BUCKET = 2**23  # numbers in one message; otherwise each small tensor of a network would cost a latency
ORPHAN_POLL, ORPHAN_GRACE = 0.5, 8.0  # seconds between checks of the parent, and to save a checkpoint when it has ended


class Communicator:
    """Communication of a single process, which has nobody to talk to; `Group` overrides it.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        sent: bytes that this process has passed to collective operations.
    """

    rank, size, sent = 0, 1, 0

    def shard(self, whole: int) -> Shard:
        """This process's rows of a batch of `whole` rows, which `size` divides."""
        count = whole // self.size
        return Shard(self.rank * count, count, whole)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over the processes of tensors with the same shapes in each; detached, the same bits in each process."""
        return list(tensors)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor to its mean over the processes, in place."""

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of their ranks; only this process's rows keep their graph.

        Every process has the same number of rows. If every process computes the same function of all rows, the gradient
        of a parameter is the sum over processes of its gradients through their own rows.
        """
        return rows

    def largest(self, *numbers: int) -> list[int]:
        """The maximum of each number over the processes."""
        return list(numbers)

    def broadcast(self, content: bytes) -> bytes:
        """Rank 0's bytes, returned in every process."""
        return content

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """Run the block on the first process of each machine, then on the others, which find what it downloaded."""
        yield

    def check_equal(self, what: str, text: str) -> None:
        """Check that all processes have the same text.

        Args:
            what: names the text in the error.
            text: this process's.

        Raises:
            InputError: this process's text differs from that of rank 0.
        """


ALONE = Communicator()


class Group(Communicator):
    """Communication within torch's default process group: NCCL between GPUs, gloo between CPUs."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.sent = 0
        nccl = dist.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    @override
    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        summed = [torch.empty_like(tensor) for tensor in tensors]
        for bucket in _buckets(tensors):
            flat = torch.cat([tensors[place].detach().reshape(-1) for place in bucket]).to(self._device)
            self._reduce(flat)
            for place, part in zip(bucket, flat.split([tensors[place].numel() for place in bucket]), strict=True):
                summed[place].copy_(part.view(summed[place].shape))
        return summed

    @override
    def average(self, tensors: Sequence[Tensor]) -> None:
        for tensor, total in zip(tensors, self.sum(tensors), strict=True):
            tensor.copy_(total / self.size)

    @override
    def gather(self, rows: Tensor) -> Tensor:
        own = rows.detach().contiguous()
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        self.sent += own.nbytes
        with peer_faults():
            dist.all_gather(gathered, own)
        return torch.cat([rows if rank == self.rank else other for rank, other in enumerate(gathered)])

    @override
    def largest(self, *numbers: int) -> list[int]:
        values = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        self._reduce(values, dist.ReduceOp.MAX)
        return values.tolist()

    @override
    def broadcast(self, content: bytes) -> bytes:
        (length,) = self.largest(len(content) if self.rank == 0 else 0)
        values = torch.zeros(length, dtype=torch.uint8)
        if self.rank == 0 and length:
            values = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        values = values.to(self._device)
        self.sent += values.nbytes
        with peer_faults():
            dist.broadcast(values, src=0)
        return values.cpu().numpy().tobytes()

    @override
    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        first = rank_environment.local_rank() == 0
        if not first:
            self.largest(0)  # a barrier
        yield
        if first:
            self.largest(0)

    @override
    def check_equal(self, what: str, text: str) -> None:
        if self.broadcast(text.encode()).decode() != text:
            raise InputError(f"rank {self.rank}", f"{what} is not that of rank 0", "give all processes the same")

    def _reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        self.sent += values.nbytes
        with peer_faults():
            dist.all_reduce(values, operation)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Positions of tensors to send in one message: same dtype, in order, about `BUCKET` numbers."""
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
    """The communicator of torch's default process group; `ALONE` where that has one process or does not exist."""
    grouped = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return Group() if grouped else ALONE


@contextmanager
def peer_faults() -> Iterator[None]:
    """Inside the block torch's RuntimeError about another process becomes an `EnvironmentFault`.

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
    """Inside the block this process is in the process group of its launcher, such as torchrun, if there is one.

    Args:
        device: kind of device that the run uses; on CUDA each process takes the device of its local rank.
        patience: seconds to wait for another process before the run fails.

    Raises:
        EnvironmentFault: the other processes cannot be reached.
    """
    if rank_environment.processes() == 1 or dist.is_initialized():
        yield communicator()
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(rank_environment.local_rank())
    threading.Thread(target=_stop_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=patience))
    except (RuntimeError, ValueError) as problem:
        reason = str(problem).strip().split("\n")[0][:100]
        raise EnvironmentFault(
            f"rank {rank_environment.rank()}",
            f"the other processes cannot be reached ({reason})",
            "look at the launcher",
        ) from None
    yield communicator()
    # Not after an error: this would wait for a process that has ended.
    dist.destroy_process_group()


def _stop_with_parent(parent: int) -> None:
    """Stop this process when its launcher has ended: first by SIGTERM, so that it saves, then at once."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_POLL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE)
    os._exit(128 + signal.SIGTERM)
