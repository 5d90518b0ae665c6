"""One chunk, from wherever it is, checked; and the plain file operations that restore and repair share."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from builder.errors import IntegrityError
from builder.format.manifest import Chunk, File, Manifest
from builder.transfer import checksum
from builder.transfer.checksum import Buffer
from builder.transfer.claim import write_at
from builder.transfer.disk import ALIGN_BYTES, stream_from
from builder.transfer.retry import RetryingSource

Write = Callable[[memoryview, int], None]
STORE_HINT = "run `builder weights repair` on the store"


def fetch(
    manifest: Manifest,
    places: Sequence[tuple[File, Chunk]],
    source: RetryingSource,
    window: memoryview,
    write: Write,
    *,
    sha256: bool,
) -> bool:
    """The chunk that goes to `places`, checked; whether it came from the source, not from the manifest, where small files lie.

    window: the memory that it passes through.  write(piece, offset): its bytes in order, as they come, so before they are
    checked: nothing counts until this returns. With every try they begin at offset 0 again.
    sha256: check that too, not only the CRC64NVME.
    Raises IntegrityError if the object is missing, or wrong each time it was read; RemoteError; what `write` raises.
    """
    for file, chunk in places:
        if file.path in manifest.small:
            body = memoryview(manifest.small[file.path])[chunk.offset : chunk.offset + chunk.size]
            digests = checksum.Digests(with_sha256=sha256)
            digests.update(body)
            verify(chunk, digests)
            write(body, 0)
            return False
    chunk = places[0][1]
    size = source.stream(
        chunk.key, window, limit=chunk.size, check=lambda digests: verify(chunk, digests), sha256=sha256, write=write
    )
    if size is None:
        raise IntegrityError("no such object", hint=STORE_HINT, where={"key": chunk.key})
    return True


def verify(chunk: Chunk, digests: checksum.Digests) -> None:
    """Raises IntegrityError, saying what was found, unless the digested bytes are the chunk."""
    found = "" if digests.size == chunk.size else f"{digests.size} of {chunk.size} bytes"
    if not found and digests.crc64nvme != chunk.crc64nvme:
        found = f"crc64nvme {digests.crc64nvme}"
    if not found and digests.sha256 not in ("", chunk.sha256):
        found = f"sha256 {digests.sha256}"
    if found:
        raise IntegrityError(found, hint=STORE_HINT, where={"key": chunk.key})


def digest_chunk(path: Path, chunk: Chunk, window: memoryview, *, sha256: bool) -> checksum.Digests:
    """Of the chunk's bytes as they are on disk; fewer if the file is short. window: whole blocks, for O_DIRECT.

    Whole blocks around the chunk are read, so that this can go past the page cache wherever the chunk begins.
    """
    start = chunk.offset - chunk.offset % ALIGN_BYTES
    end = -(-(chunk.offset + chunk.size) // ALIGN_BYTES) * ALIGN_BYTES
    digests, at = checksum.Digests(with_sha256=sha256), start

    def seen(piece: memoryview) -> None:
        nonlocal at
        digests.update(piece[max(0, chunk.offset - at) : max(0, chunk.offset + chunk.size - at)])
        at += len(piece)

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        stream_from(fd, window, start, end - start, seen)
    finally:
        os.close(fd)
    return digests


@contextlib.contextmanager
def writer(folder: Path, places: Sequence[tuple[File, Chunk]]) -> Iterator[Write]:
    """write(piece, offset within the chunk) puts the piece at each of the chunk's places, in files that are there."""
    with contextlib.ExitStack() as opened:
        targets = []
        for file, chunk in places:
            fd = os.open(folder / file.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            opened.callback(os.close, fd)
            targets.append((fd, chunk.offset))

        def write(piece: Buffer, offset: int) -> None:
            for fd, start in targets:
                write_at(fd, piece, start + offset)

        yield write


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
