"""Plain Python threads for compiled loops, which let go of the interpreter's lock.

Not numba's `prange`: its OpenMP layer ends a process that forks after it, as torch's data loader does, and its own
layer must not be entered by two threads. The threads here end with the call, so a fork finds none.
"""

import itertools
import threading
from collections.abc import Callable

import torch

WORTH_THREADS = 2**20  # bytes of images; fewer take about a millisecond
RANGES = 4  # for each thread, since images do not take equally long


def in_ranges(work: Callable[[int, int], object], number: int, chunk: int, threads: int | None = None) -> None:
    """Call `work(first, last)` for ranges that together are 0 to `number`, on several threads.

    Args:
        work: must not depend on the order of the calls.
        number: of items.
        chunk: items in a range.
        threads: None is torch's number, which the setting `threads` sets and which is 1 in a loader's worker.

    Raises:
        BaseException: what `work` raised; of several errors the first.
    """
    threads = min(torch.get_num_threads() if threads is None else threads, -(-number // chunk))
    if threads <= 1:
        if number:
            work(0, number)
        return
    numbers, errors = itertools.count(), list[BaseException]()

    def take() -> None:
        try:
            while not errors and (first := next(numbers) * chunk) < number:
                work(first, min(first + chunk, number))
        except BaseException as problem:
            errors.append(problem)

    others = [threading.Thread(target=take, daemon=True) for _ in range(threads - 1)]
    for each in others:
        each.start()
    take()
    for each in others:
        each.join()
    if errors:
        raise errors[0]


def images_in_ranges(work: Callable[[int, int], object], number: int, bytes_per_image: int) -> None:
    """`in_ranges` for the images of a batch, in one thread where they are few."""
    ranges = RANGES * torch.get_num_threads() if number * bytes_per_image >= WORTH_THREADS else 1
    in_ranges(work, number, max(1, -(-number // ranges)))
