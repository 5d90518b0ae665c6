"""Threads of this process. Hashing, sockets and disks all release the GIL, so threads are enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from builder.errors import BuilderError

Task = TypeVar("Task")
Result = TypeVar("Result")


class LocalEngine:
    """concurrency: threads."""

    def __init__(self, concurrency: int = 8) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency {concurrency}, expected at least 1")
        self.concurrency = concurrency

    def map(self, do: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result | BuilderError]]:
        """See Engine.map."""
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="builder")
        running: dict[Future[Result], Task] = {}
        try:
            for task in tasks:
                running[pool.submit(do, task)] = task
                del task  # the loop's own reference would keep one more buffer alive
                if len(running) >= self.concurrency:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finished(running: dict[Future[Result], Task]) -> Iterator[tuple[Task, Result | BuilderError]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        task = running.pop(future)
        try:
            yield task, future.result()
        except BuilderError as exc:
            yield task, exc
