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
from builder.transfer.disk import ALIGN_BYTES, fill_from
from builder.transfer.retry import RetryingSource

STORE_HINT = "run `builder weights repair` on the store"


def fetch(
    manifest: Manifest,
    places: Sequence[tuple[File, Chunk]],
    source: RetryingSource,
    into: memoryview,
    *,
    sha256: bool,
    parts: int = 1,
) -> tuple[Buffer, bool]:
    """(bytes, came from the source) of the chunk that goes to `places`; from the manifest if one of its files lies there.

    into: a buffer with room for the chunk; what is returned may lie in it.  parts: requests at once for it.
    sha256: check that too, not only the CRC64NVME.
    Raises IntegrityError if the object is missing, or wrong each time it was read; RemoteError.
    """
    for file, chunk in places:
        if file.path in manifest.small:
            body = manifest.small[file.path][chunk.offset : chunk.offset + chunk.size]
            digests = checksum.Digests(with_sha256=sha256)
            digests.update(body)
            verify(chunk, digests)
            return body, False
    chunk = places[0][1]
    view = into[: chunk.size]
    size = source.fill(chunk.key, view, check=lambda digests: verify(chunk, digests), sha256=sha256, parts=parts)
    if size is None:
        raise IntegrityError("no such object", hint=STORE_HINT, where={"key": chunk.key})
    return view, True


def verify(chunk: Chunk, digests: checksum.Digests) -> None:
    """Raises IntegrityError, saying what was found, unless the digested bytes are the chunk."""
    found = "" if digests.size == chunk.size else f"{digests.size} of {chunk.size} bytes"
    if not found and digests.crc64nvme != chunk.crc64nvme:
        found = f"crc64nvme {digests.crc64nvme}"
    if not found and digests.sha256 not in ("", chunk.sha256):
        found = f"sha256 {digests.sha256}"
    if found:
        raise IntegrityError(found, hint=STORE_HINT, where={"key": chunk.key})


def digest_chunk(path: Path, chunk: Chunk, into: memoryview, *, sha256: bool) -> checksum.Digests:
    """Of the chunk's bytes as they are on disk; fewer if the file is short. into: room for the chunk and two blocks more.

    Whole blocks around the chunk are read, so that this can go past the page cache wherever the chunk begins.
    """
    start = chunk.offset - chunk.offset % ALIGN_BYTES
    skip, end = chunk.offset - start, chunk.offset - start + chunk.size
    whole = min(-(-end // ALIGN_BYTES) * ALIGN_BYTES, len(into))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        got = fill_from(fd, into[:whole], start, lambda piece: None)
    finally:
        os.close(fd)
    digests = checksum.Digests(with_sha256=sha256)
    digests.update(into[skip : max(skip, min(end, got))])
    return digests


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
