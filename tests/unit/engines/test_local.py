"""The local engine: bounded, lazy, every error."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from builder.engines.local import LocalEngine
from builder.errors import BuilderError, RemoteError
from tests.bounds import BOUND_S


def test_every_task_comes_back_with_its_result_or_error() -> None:
    def do(n: int) -> int:
        if n % 3 == 0:
            raise RemoteError(str(n))
        return n * n

    found = dict(LocalEngine(4).map(do, range(20)))
    assert {n: r for n, r in found.items() if not isinstance(r, BuilderError)} == {n: n * n for n in range(20) if n % 3}
    assert {n for n, r in found.items() if isinstance(r, RemoteError)} == set(range(0, 20, 3))


def test_no_more_tasks_are_drawn_than_run() -> None:
    drawn, finished = 0, 0
    most = 0

    def tasks() -> Iterator[int]:
        nonlocal drawn, most
        for n in range(50):
            drawn += 1
            most = max(most, drawn - finished)
            yield n

    for _ in LocalEngine(3).map(lambda n: n, tasks()):
        finished += 1
    assert finished == 50
    assert most <= 3


def test_tasks_run_at_the_same_time() -> None:
    together = threading.Barrier(4, timeout=BOUND_S)
    assert len(list(LocalEngine(4).map(lambda n: together.wait(), range(4)))) == 4


def test_another_exception_stops_the_drawing() -> None:
    drawn = []

    def tasks() -> Iterator[int]:
        for n in range(100):
            drawn.append(n)
            yield n

    def do(n: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(LocalEngine(2).map(do, tasks()))
    assert len(drawn) <= 3


def test_no_concurrency_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LocalEngine(0)
