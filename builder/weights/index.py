"""What earlier pushes from this machine learned by reading: digests of files that have not changed since.

    <folder>/<sha256 of the file's identity>     one file per identity, lines only ever appended

    <check> piece <offset> <size> <sha256> <crc64nvme>\\n
    <check> whole <sha256>\\n

A line is a fact about bytes of one file, whatever the cut: it never says what a store holds. The identity comes from the
ModelFile and changes with the file's bytes, so an entry is never updated; an outdated one is not found again, and the oldest
go when the folder grows above MAX_BYTES.

Each line is one write(2) to a file opened for appending and carries a check over the identity and itself: a killed process
loses at most a line, pushes may run at once, and a line that was torn or damaged is passed over. Nothing is fsynced, and no
error of this folder's disk is an error of a push: without the index it reads and hashes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

from builder.format.manifest import Chunk

MAX_BYTES = 64 << 20  # of all entries: about 500 000 pieces, 8 TB of models at 16 MiB
_LINE = re.compile(
    r"([0-9a-f]{16}) (?:piece (\d{1,18}) (\d{1,18}) ([0-9a-f]{64}) ([0-9a-f]{16})|whole ([0-9a-f]{64}))", re.ASCII
)


@dataclass(frozen=True)
class Known:
    """Of one file. chunks: by (offset, size).  sha256: of the whole file, or "" where it is not known."""

    chunks: dict[tuple[int, int], Chunk] = field(default_factory=dict)
    sha256: str = ""


class Index:
    """folder: made, for this user alone, on the first write. None: nothing is known, nothing is kept. Thread-safe."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._prepared = False
        self._lock = threading.Lock()

    def known(self, identity: str) -> Known:
        """Everything on record of the file with this identity; of "" nothing is."""
        path = self._path(identity)
        try:
            text = path.read_bytes().decode("ascii", "replace") if path else ""
        except OSError:
            return Known()
        chunks: dict[tuple[int, int], Chunk] = {}
        sha256 = ""
        for line in text.split("\n"):
            found = _LINE.fullmatch(line)
            if found is None or found[1] != _check(identity, line[17:]):
                continue
            if found[6]:
                sha256 = found[6]
            else:
                offset, size = int(found[2]), int(found[3])
                chunks[offset, size] = Chunk(found[4], offset, size, found[5])
        return Known(chunks, sha256)

    def add_chunk(self, identity: str, chunk: Chunk) -> None:
        self._append(identity, f"piece {chunk.offset} {chunk.size} {chunk.sha256} {chunk.crc64nvme}")

    def add_whole(self, identity: str, sha256: str) -> None:
        self._append(identity, f"whole {sha256}")

    def forget(self, identity: str) -> None:
        """For an entry that turned out to be wrong."""
        if path := self._path(identity):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _path(self, identity: str) -> Path | None:
        if self._folder is None or not identity:
            return None
        return self._folder / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()

    def _append(self, identity: str, line: str) -> None:
        path = self._path(identity)
        if path is None:
            return
        with contextlib.suppress(OSError):
            self._prepare(path.parent)
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # The line end in front closes a line that a crash left open.
                os.write(fd, f"\n{_check(identity, line)} {line}\n".encode())
            finally:
                os.close(fd)

    def _prepare(self, folder: Path) -> None:
        """Once: make the folder, and remove the least recently written entries of one that grew too large."""
        with self._lock:
            if self._prepared:
                return
            self._prepared = True
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.scandir(folder) as found:
                entries = sorted((e.stat().st_mtime, e.stat().st_size, e.path) for e in found)
            excess = sum(size for _, size, _ in entries) - MAX_BYTES
            for _, size, path in entries:
                if excess <= 0:
                    return
                os.unlink(path)  # noqa: PTH108  # scandir's own path
                excess -= size


def _check(identity: str, line: str) -> str:
    """Ties a line to its file, so that neither damage nor a mistaken copy is taken for a fact."""
    return hashlib.blake2b(f"{identity}\n{line}".encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
