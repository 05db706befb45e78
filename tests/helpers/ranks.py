"""Several processes of a run without paying for their imports: this one is forked."""

import multiprocessing
import os
import pickle
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 60.0  # seconds for what takes one or two


class Ranks:
    """Forked processes in one gloo group, each of which calls `function()`; results come as they are pickled.

    Attributes:
        processes: to kill, stop or signal.
    """

    def __init__(self, size: int, function: Callable[[], Any], folder: Path, patience: float = PATIENCE) -> None:
        context = multiprocessing.get_context("fork")
        place = folder / f"store-{size}-{len(list(folder.iterdir()))}"
        place.touch()
        self.processes, self._results = [], []
        for rank in range(size):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (rank, size, place, function, sender, patience)
            process = context.Process(target=_member, args=arguments, daemon=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
                process.start()
            sender.close()
            self.processes.append(process)
            self._results.append(receiver)

    def result(self, rank: int, within: float = PATIENCE) -> Any:
        """What one has returned; an exception where it raised one, None where it was killed."""
        process, receiver = self.processes[rank], self._results[rank]
        if not receiver.poll(within):
            process.kill()
            raise AssertionError(f"rank {rank} says nothing")
        try:
            return pickle.loads(receiver.recv_bytes())
        except EOFError:
            return None

    def results(self, within: float = PATIENCE) -> list[Any]:
        """`result` of each, in their order; they have ended."""
        found = [self.result(rank, within) for rank in range(len(self.processes))]
        for process in self.processes:
            process.join(within)
        return found


def on_ranks(size: int, function: Callable[[], Any], folder: Path) -> list[Any]:
    """What `function()` returns in each of several processes."""
    results = Ranks(size, function, folder).results()
    for rank, result in enumerate(results):
        if isinstance(result, BaseException):
            raise AssertionError(f"rank {rank}: {result.__notes__[0]}") from result
    return results


def _member(
    rank: int, size: int, store: Path, function: Callable[[], Any], sender: Connection, patience: float
) -> None:
    torch.set_num_threads(1)
    try:
        with _group(rank, size, store, patience):
            result = function()
    except BaseException as problem:  # told to the test, whatever it is
        problem.add_note(traceback.format_exc())
        sender.send_bytes(pickle.dumps(problem))
        os._exit(1)
    sender.send_bytes(pickle.dumps(result))  # not `send`: torch would share the tensors' memory
    sender.close()
    os._exit(0)


@contextmanager
def _group(rank: int, size: int, store: Path, patience: float) -> Any:
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), size), rank=rank, world_size=size, timeout=timedelta(seconds=patience)
    )
    yield
    dist.destroy_process_group()
