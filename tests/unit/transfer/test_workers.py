"""Threads over work: bounded, in order, and gone when the call returns."""

from __future__ import annotations

import threading

import pytest

from builder.transfer.workers import each
from tests.bounds import BOUND_S


def test_all_items_are_done_with_no_more_threads_than_asked() -> None:
    lock, running, peak, seen = threading.Lock(), 0, 0, []
    gate = threading.Barrier(3, timeout=BOUND_S)

    def work(item: int) -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
            seen.append(item)
        gate.wait()
        with lock:
            running -= 1

    each(range(30), work, workers=3)
    assert (sorted(seen), peak) == (list(range(30)), 3)


def test_one_worker_keeps_the_order() -> None:
    seen: list[int] = []
    each(range(20), seen.append, workers=1)
    assert seen == list(range(20))


def test_the_first_failure_stops_the_rest_and_comes_out() -> None:
    seen: list[int] = []

    def work(item: int) -> None:
        seen.append(item)
        if item == 5:
            raise ValueError("item 5")

    with pytest.raises(ValueError, match="item 5"):
        each(range(100_000), work, workers=1)
    assert seen == list(range(6))
    assert not [t for t in threading.enumerate() if t.name.startswith("transfer")]


def test_a_set_stop_ends_the_work_early() -> None:
    stop, seen = threading.Event(), []

    def work(item: int) -> None:
        seen.append(item)
        if item == 3:
            stop.set()

    each(range(100), work, workers=1, stop=stop)
    assert seen == [0, 1, 2, 3]
