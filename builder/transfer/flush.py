"""Written bytes on their way to disk while others still arrive, so that the end of a transfer is not one long sync.

The kernel begins to write dirty pages when a tenth of the memory holds them: of a model smaller than that, nothing would be
on disk when the last byte arrives. One thread syncs what was written, file by file, again and again.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

STEP_BYTES = 64 << 20  # written to a file before it is synced again


class Flusher:
    """Syncs files behind the writers. Thread-safe; a context manager, so that its thread ends."""

    def __init__(self) -> None:
        self._waiting: dict[Path, int] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="flush", daemon=True)

    def __enter__(self) -> Flusher:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def wrote(self, path: Path, size: int) -> None:
        """`size` bytes were written to the file."""
        with self._wake:
            self._waiting[path] = self._waiting.get(path, 0) + size
            if self._waiting[path] >= STEP_BYTES:
                self._wake.notify()

    def require(self) -> None:
        """Raises what a sync raised: the disk failed, and what it lost is not known."""
        if self._error:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or any(n >= STEP_BYTES for n in self._waiting.values()))
                if self._closing:
                    return
                path = max(self._waiting, key=lambda p: self._waiting[p])
                del self._waiting[path]
            try:
                sync_data(path)
            except OSError as exc:
                self._error = self._error or exc
                return


def sync_data(path: Path) -> None:
    """Force a file's bytes to disk, and of its inode what is needed to find them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
