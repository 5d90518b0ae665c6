"""A bound on the bytes that are in memory at once."""

from __future__ import annotations

import threading

from builder.transfer.checksum import Buffer

# Pieces come in a few sizes. Measured with pieces of 8 and 16 MiB, 128 MiB and 8 threads, 1 GB: without room for spare ones of
# both sizes, 109 000 page faults and 318 MiB resident, because freed buffers stay in malloc's arenas; at 1.5, 46 000 and 190.
SPARE = 1.5


class ByteBudget:
    """At most `limit` bytes taken and not given back. Thread-safe. peak: the most that were taken at once.

    A buffer may come with what is given back, and goes with the next `take` of its very size: fresh memory costs a page
    fault per 4 KiB, on a virtual machine as much as copying into it. Spare buffers and what is taken are at most SPARE times
    the limit together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.peak = 0
        self._taken = 0
        self._spare: list[bytearray] = []
        self._changed = threading.Condition()

    def take(self, size: int) -> bytearray | None:
        """Wait until `size` more bytes fit; a spare buffer of that size, if there is one.

        A single piece above the limit waits until it is alone.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + size <= self.limit)
            self._taken += size
            self.peak = max(self.peak, self._taken)
            found = next((i for i, buffer in enumerate(self._spare) if len(buffer) == size), None)
            spare = None if found is None else self._spare.pop(found)
            while self._spare and self._taken + sum(map(len, self._spare)) > SPARE * self.limit:
                self._spare.pop(0)
            return spare

    def give(self, size: int, buffer: bytearray | None = None) -> None:
        """buffer: of `size` bytes, which nobody looks at any more."""
        with self._changed:
            self._taken -= size
            if buffer is not None and self._taken + size + sum(map(len, self._spare)) <= SPARE * self.limit:
                self._spare.append(buffer)
            self._changed.notify_all()


class Held:
    """A place of `size` bytes in the budget, and what lies in it, until everyone who holds it has let go. Thread-safe.

    Waits for its place; made with one holder. data: for them alone, since the memory is used again once they let go.
    """

    def __init__(self, budget: ByteBudget, size: int) -> None:
        self.data: Buffer = b""
        self._budget, self._size, self._holders = budget, size, 1
        self._buffer = budget.take(size)
        self._lock = threading.Lock()

    def room(self) -> bytearray:
        """Memory of exactly `size` bytes to put the data in."""
        if self._buffer is None:
            self._buffer = bytearray(self._size)
        return self._buffer

    def hold(self) -> Held:
        """One holder more."""
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> None:
        """One holder less; the last one frees the bytes and their place."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            buffer, self._buffer, self.data = self._buffer, None, b""
            self._budget.give(self._size, buffer)
