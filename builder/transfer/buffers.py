"""The memory of a transfer: a few windows, reused for piece after piece. What they hold is all that is in flight."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

WINDOW_BYTES = 512 << 10  # stays in the second-level cache from the socket to the file, digests included
MEMORY_BYTES = 256 << 20  # in flight, where nothing else is asked for


class Buffers:
    """As many windows as fit into `memory` bytes, at least one and at most `most`. Thread-safe.

    size: bytes of one.  Page-aligned, so that the disk can write into them directly (O_DIRECT). Made when first used, and
    kept: fresh memory costs a page fault per 4 KiB, which on a virtual machine is more than the copy into it.
    """

    def __init__(self, memory: int, *, most: int, size: int = WINDOW_BYTES) -> None:
        self.size = max(size, 1)
        self.count = max(1, min(most, memory // self.size))
        self._free: list[memoryview] = []
        self._left = threading.BoundedSemaphore(self.count)

    @contextmanager
    def one(self) -> Iterator[memoryview]:
        """One window; waits while all are in use."""
        with self._left:
            try:
                view = self._free.pop()
            except IndexError:
                view = memoryview(mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            try:
                yield view
            finally:
                self._free.append(view)
