"""Ranges over threads: each item once, errors raised, nothing left for a fork to lose."""

import os
import threading
from collections.abc import Callable

import pytest

from mapolicy.runtime.threads import WORTH_THREADS, images_in_ranges, in_ranges


@pytest.mark.parametrize(("number", "chunk", "threads"), [(10, 3, 2), (1, 5, 4), (0, 1, 2), (64, 1, 3), (7, 7, 2)])
def test_each_item_comes_once(number: int, chunk: int, threads: int) -> None:
    seen: list[int] = []
    before = threading.active_count()  # other tests have a server
    in_ranges(lambda first, last: seen.extend(range(first, last)), number, chunk, threads)
    assert sorted(seen) == list(range(number))
    assert threading.active_count() == before


def test_several_threads_take_part_only_where_it_is_worth_it(set_threads: Callable[[int], None]) -> None:
    set_threads(2)
    both, ranges = threading.Barrier(2, timeout=20), list[tuple[int, int]]()

    def work(first: int, last: int) -> None:
        ranges.append((first, last))
        if len(ranges) <= 2:
            both.wait()  # raises where one thread does all

    images_in_ranges(work, 16, WORTH_THREADS)
    assert len(ranges) == 8
    assert sorted(ranges)[0] == (0, 2)
    few: list[tuple[int, int]] = []
    images_in_ranges(lambda *ends: few.append(ends), 16, WORTH_THREADS // 17)
    assert few == [(0, 16)]
    set_threads(1)
    few.clear()
    images_in_ranges(lambda *ends: few.append(ends), 16, WORTH_THREADS)
    assert few == [(0, 16)]


def test_an_error_of_a_thread_is_raised_in_the_caller() -> None:
    def work(first: int, last: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise KeyError("other")
        started.wait(10)

    started = threading.Event()
    threading.Timer(0.2, started.set).start()
    with pytest.raises(KeyError, match="other"):
        in_ranges(work, 8, 1, 2)


def test_a_forked_child_can_use_threads_again() -> None:
    in_ranges(lambda first, last: None, 8, 1, 2)
    child = os.fork()
    if child == 0:
        seen: list[int] = []
        in_ranges(lambda first, last: seen.extend(range(first, last)), 8, 1, 2)
        os._exit(0 if sorted(seen) == list(range(8)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
