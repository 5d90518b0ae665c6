"""The memory of a transfer: a few buffers, reused for chunk after chunk. What they hold is all that is in flight."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MEMORY_BYTES = 256 << 20  # of chunk data in flight, where nothing else is asked for


class Buffers:
    """`count` buffers of `size` bytes: as many as fit into `memory` bytes, and at least one. Thread-safe.

    Page-aligned, so that the disk can write into them directly (O_DIRECT). Made when first used, and kept: fresh memory
    costs a page fault per 4 KiB, which on a virtual machine is more than the copy into it.
    """

    def __init__(self, memory: int, size: int, *, most: int) -> None:
        self.size = max(size, 1)
        self.count = max(1, min(most, memory // self.size))
        self._free: list[memoryview] = []
        self._left = threading.BoundedSemaphore(self.count)

    @contextmanager
    def one(self) -> Iterator[memoryview]:
        """One buffer; waits while all are in use."""
        with self._left:
            try:
                view = self._free.pop()
            except IndexError:
                view = memoryview(_pages(self.size))
            try:
                yield view
            finally:
                self._free.append(view)


def _pages(size: int) -> mmap.mmap:
    """Anonymous memory, in huge pages where the kernel gives them: one fault for 2 MiB instead of 512."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones have no huge pages
    with contextlib.suppress(OSError, AttributeError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
