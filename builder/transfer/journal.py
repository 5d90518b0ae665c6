"""Which chunks of a half-written folder have been written. Survives kill -9 at any instruction.

    sha256:<64 hex>\\n      the manifest
    <64 hex>\\n ...         a chunk that is on disk at all its places

One record is one append of 65 bytes, made after the chunk's own writes returned. That covers a killed process, whose
written pages live on in the kernel, but not a lost power supply, which may keep the record and drop the pages. Syncing
every chunk would cost more than it saves, so the reader does not trust records: it reads a recorded chunk back and
compares its CRC64NVME (20 GB/s per core; the disk is the limit), and fetches again what differs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_RECORD = re.compile(rb"[0-9a-f]{64}\n")


class Journal:
    """Append-only, one writer process (the folder's lock), any number of its threads.

    recorded: chunks that an earlier run wrote.
    """

    def __init__(self, path: Path, digest: str) -> None:
        """Open or create. A journal of another manifest, or a damaged one, is started anew: its records say nothing."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        head = f"{digest}\n".encode()
        body = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        if body[: len(head)] != head:
            body = b""
            os.ftruncate(self._fd, 0)
            os.write(self._fd, head)
        records = body[len(head) :]
        whole = len(records) - len(records) % 65  # a torn last record is cut off, so that the next one starts a line
        if body and whole != len(records):
            os.ftruncate(self._fd, len(head) + whole)
        self.recorded = frozenset(
            records[at : at + 64].decode() for at in range(0, whole, 65) if _RECORD.match(records[at : at + 65])
        )

    def record(self, sha256: str) -> None:
        """The chunk is written at all its places."""
        os.write(self._fd, f"{sha256}\n".encode())

    def close(self) -> None:
        os.close(self._fd)
