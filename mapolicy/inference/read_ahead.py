"""Read images in threads, a batch ahead of the network."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Result], batch_size: int
) -> Iterator[tuple[Sequence[Item], list[Result]]]:
    """Yield the items and what `read` makes of them, a batch at a time and in their order.

    While the caller works on a batch, threads read the next one. Pillow decodes outside Python's global lock.
    """
    waiting: deque[tuple[Sequence[Item], list[Future[Result]]]] = deque()
    pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))
    try:
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            waiting.append((batch, [pool.submit(read, item) for item in batch]))
            if len(waiting) > 1:
                yield _finished(*waiting.popleft())
        if waiting:
            yield _finished(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(batch: Sequence[Item], futures: list[Future[Result]]) -> tuple[Sequence[Item], list[Result]]:
    return batch, [future.result() for future in futures]
