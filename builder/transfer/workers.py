"""A bounded number of threads over a list of work, in order. Memory is bounded because each thread holds one item."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

_T = TypeVar("_T")


def each(items: Iterable[_T], work: Callable[[_T], None], *, workers: int, stop: threading.Event | None = None) -> None:
    """work(item) for every item, `workers` at a time, started in order.

    The first exception, or a KeyboardInterrupt in the caller, sets `stop`: no further item is started, those under way
    finish, and it is raised. No thread outlives the call. Setting `stop` from elsewhere ends the work early in silence.
    """
    stop = stop or threading.Event()
    source, lock = iter(items), threading.Lock()

    def loop() -> None:
        while not stop.is_set():
            with lock:
                item = next(source, None)
            if item is None:
                return
            work(item)

    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="transfer") as pool:
        futures = [pool.submit(loop) for _ in range(max(1, workers))]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = any(future.exception() for future in done)
        except BaseException:
            stop.set()
            raise
        if failed:
            stop.set()
    for future in futures:
        future.result()
