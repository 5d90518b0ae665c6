"""A bound on the bytes that are in memory at once."""

from __future__ import annotations

import threading


class ByteBudget:
    """At most `limit` bytes taken and not given back. Thread-safe. peak: the most that were taken at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.peak = 0
        self._taken = 0
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until `size` more bytes fit. A single piece above the limit waits until it is alone."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + size <= self.limit)
            self._taken += size
            self.peak = max(self.peak, self._taken)

    def give(self, size: int) -> None:
        with self._changed:
            self._taken -= size
            self._changed.notify_all()
