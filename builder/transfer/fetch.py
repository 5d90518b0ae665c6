"""One chunk, from wherever it is, checked; and the plain file operations that restore and repair share."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from builder.errors import IntegrityError
from builder.format.manifest import Chunk, File, Manifest
from builder.transfer import checksum
from builder.transfer.checksum import Buffer
from builder.transfer.claim import write_at
from builder.transfer.retry import RetryingSource
from builder.transfer.source import read_into

STORE_HINT = "run `builder weights repair` on the store"


def fetch(
    manifest: Manifest, places: Sequence[tuple[File, Chunk]], source: RetryingSource, *, sha256: bool
) -> tuple[Buffer, bool]:
    """(bytes, came from the source) of the chunk that goes to `places`; from the manifest if one of its files lies there.

    sha256: check that too, not only the CRC64NVME.
    Raises IntegrityError if the object is missing, or wrong each time it was read; RemoteError.
    """
    for file, chunk in places:
        if file.path in manifest.small:
            body = manifest.small[file.path][chunk.offset : chunk.offset + chunk.size]
            verify(chunk, body, sha256=sha256)
            return body, False
    chunk = places[0][1]
    found = source.read(chunk.key, limit=chunk.size, check=lambda body: verify(chunk, body, sha256=sha256))
    if found is None:
        raise IntegrityError("no such object", hint=STORE_HINT, where={"key": chunk.key})
    return found, True


def verify(chunk: Chunk, body: Buffer, *, sha256: bool) -> None:
    """Raises IntegrityError, saying what was found, unless `body` is the chunk."""
    found = "" if len(body) == chunk.size else f"{len(body)} of {chunk.size} bytes"
    if not found and (crc := checksum.crc64nvme_hex(body)) != chunk.crc64nvme:
        found = f"crc64nvme {crc}"
    if not found and sha256 and (sha := checksum.sha256_hex(body)) != chunk.sha256:
        found = f"sha256 {sha}"
    if found:
        raise IntegrityError(found, hint=STORE_HINT, where={"key": chunk.key})


def read_chunk(path: Path, chunk: Chunk) -> memoryview:
    """The chunk's bytes as they are on disk; fewer if the file is short."""
    view = memoryview(bytearray(chunk.size))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return view[: read_into(fd, view, chunk.offset)]
    finally:
        os.close(fd)


def write_chunk(path: Path, chunk: Chunk, body: Buffer) -> None:
    """The chunk's bytes at its place in a file that is there."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        write_at(fd, body, chunk.offset)
    finally:
        os.close(fd)


def reserve(path: Path, size: int) -> None:
    """A file of exactly `size` bytes, its blocks reserved: a full disk shows before a byte is fetched. Mode 0644."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.fchmod(fd, 0o644)
        if os.fstat(fd).st_size > size:
            os.ftruncate(fd, size)
        if size:
            _allocate(fd, size)
    finally:
        os.close(fd)


def _allocate(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        os.ftruncate(fd, size)  # musl on a file system without fallocate; glibc writes a byte into each block instead
