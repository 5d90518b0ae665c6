"""The sha256 of a whole file whose pieces come from several threads, in any order."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Executor

from builder.weights.budget import Held


class WholeHash:
    """Feeds each piece once, in the file's order, as soon as those before it are in. Thread-safe.

    pool: where the hashing runs, one thread at a time for one file; several files run beside each other.
    pieces: how many there are.  done: called with the sha256 in hex after the last one.

    A piece waits in memory for those before it, and nobody waits for the piece: as long as memory is given out in the order
    of the file, the ones before it have their memory already, and will come.
    """

    def __init__(self, pool: Executor, pieces: int, done: Callable[[str], None]) -> None:
        self._pool, self._pieces, self._done = pool, pieces, done
        self._digest = hashlib.sha256()
        self._ready: dict[int, Held] = {}
        self._next = 0
        self._running = self._given_up = False
        self._lock = threading.Lock()

    def feed(self, index: int, held: Held) -> None:
        """Take piece `index`; held is released once it is in the hash."""
        with self._lock:
            if self._given_up:
                start = False
                held.release()
            else:
                self._ready[index] = held
                start = not self._running and index == self._next
                self._running = self._running or start
        if start:
            self._pool.submit(self._drain)

    def give_up(self) -> None:
        """A piece will not come. Those that wait for it are released; `done` is never called."""
        with self._lock:
            self._given_up = True
            waiting = list(self._ready.values())
            self._ready.clear()
        for held in waiting:
            held.release()

    def _drain(self) -> None:
        while True:
            with self._lock:
                held = self._ready.pop(self._next, None)
                if held is None:
                    self._running = False
                    return
                self._next += 1
            self._digest.update(held.data)
            held.release()
            if self._next == self._pieces:
                self._done(self._digest.hexdigest())
