"""How many requests at once: as many as make it faster, found by trying while the bytes flow.

Nobody knows the link beforehand: one connection to an object store gives 20 to 100 MB/s, a 100 Gbit/s card wants a hundred of
them, a laptop four. So the number climbs while climbing pays (doubling, then by a quarter), stays at the best, is tried
again now and then, and is halved when the store says that it is too much (429, 503).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST = 4  # requests at once to begin with
MOST = 128
EPOCH_S = 0.3  # measured before each change, and at least two chunks per place
GAIN = 1.15  # a change must pay this much, or it is noise
STEEP = 1.4  # above this, double
AGAIN_S = 15.0


class Link:
    """A limit that tunes itself. Thread-safe.

    most: never above.  limit: requests at once now.
    """

    def __init__(self, *, first: int = FIRST, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = max(1, most)
        self.limit = min(first, self.most)
        self._clock = clock
        self._changed = threading.Condition()
        self._running = 0
        self._bytes = self._done = 0
        self._start = clock()
        self._best_rate, self._best = 0.0, self.limit
        self._settled_until = 0.0
        self._throttled_until = 0.0

    @contextmanager
    def chunk(self) -> Iterator[None]:
        """A place for one request; waits while as many are in flight as the limit allows."""
        with self._changed:
            self._changed.wait_for(lambda: self._running < self.limit)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify()

    def arrived(self, size: int) -> None:
        """`size` bytes came; from time to time this changes the limit."""
        with self._changed:
            self._bytes += size
            self._done += 1
            now = self._clock()
            spent = now - self._start
            if spent >= EPOCH_S and self._done >= 2 * self.limit:
                self._tune(self._bytes / spent, now)
                self._start, self._bytes, self._done = now, 0, 0
                self._changed.notify_all()

    def throttled(self) -> None:
        """The store asked for less: half of it, and no more for a while. Asked again at once, it counts once."""
        with self._changed:
            now = self._clock()
            if now < self._throttled_until:
                return
            self.limit = max(1, self.limit // 2)
            self._best, self._best_rate = self.limit, 0.0
            self._throttled_until = now + 1.0
            self._settled_until = now + AGAIN_S

    def _tune(self, rate: float, now: float) -> None:
        if now < self._settled_until:
            return
        gain = rate / self._best_rate if self._best_rate else STEEP
        if self.limit == self._best and self._best_rate:  # the pause is over: what the link gives now is the new measure
            gain = GAIN
        if gain < GAIN:
            self.limit, self._settled_until = self._best, now + AGAIN_S
            return
        self._best, self._best_rate = self.limit, rate
        self.limit = min(self.most, self.limit * 2 if gain >= STEEP else self.limit + max(1, self.limit // 4))
