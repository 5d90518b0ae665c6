"""A raw disk as `disk.raw` in a sparse, compressed tar: what `gcloud compute images create --source-uri` takes.

Google asks for GNU tar's old format (`tar --format=oldgnu -Sczf`), one member called disk.raw, and a disk of whole GiB. Holes
and runs of zeros are left out of the member, so a disk of 500 GiB costs what lies on it.
Format: GNU tar manual, "Storing Sparse Files" and tar.h, struct oldgnu_header: four extents in the header, 21 in each block
after it, numbers octal or, beyond eight GiB, base 256.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from builder import process
from builder.errors import BuilderError
from builder.node.blocks import BLOCK, candidates

MEMBER = "disk.raw"
PIECE = 64 << 10  # the grain of holes: finer ones make more extents than they save
_IN_HEADER, _IN_BLOCK = 4, 21
Extent = tuple[int, int]  # offset, bytes


def write(disk: Path, out: Path) -> None:
    """`disk` as the archive `out`, compressed by pigz where it is installed, else by one core. Levels favour speed."""
    found = extents(disk)
    with disk.open("rb", buffering=0) as source, compressed(out) as sink:
        sink.write(header(disk.stat().st_size, found))
        written = 0
        for offset, size in found:
            for at in range(offset, offset + size, BLOCK):
                written += sink.write(os.pread(source.fileno(), min(BLOCK, offset + size - at), at))
        sink.write(bytes(-written % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))


def extents(disk: Path) -> list[Extent]:
    """Runs of the disk that hold something, in pieces of 64 KiB, ascending and apart. Ends with an empty one at the disk's end,
    which tells a reader how far the hole there reaches."""
    found: list[Extent] = []
    with disk.open("rb", buffering=0) as source:
        size = os.fstat(source.fileno()).st_size
        for index in candidates(source.fileno(), size):
            block = os.pread(source.fileno(), BLOCK, index * BLOCK)
            for at in range(0, len(block), PIECE):
                piece = block[at : at + PIECE]
                if piece.count(0) < len(piece):
                    _append(found, index * BLOCK + at, len(piece))
    return [*found, (size, 0)]


def header(size: int, found: list[Extent]) -> bytes:
    """The member's header, with the list of its extents."""
    info = tarfile.TarInfo(MEMBER)
    info.size, info.mode, info.type = sum(length for _, length in found), 0o644, tarfile.GNUTYPE_SPARSE
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    first, rest = found[:_IN_HEADER], found[_IN_HEADER:]
    raw[386:482] = _list(first, _IN_HEADER)
    raw[482] = bool(rest)
    raw[483:495] = _number(size)
    raw[148:156] = b" " * 8  # the checksum is taken over spaces in its own place
    raw[148:156] = b"%06o\0 " % sum(raw)
    blocks = [rest[i : i + _IN_BLOCK] for i in range(0, len(rest), _IN_BLOCK)]
    for i, some in enumerate(blocks):
        raw += _list(some, _IN_BLOCK) + bytes([i + 1 < len(blocks)]) + bytes(7)
    return bytes(raw)


@contextmanager
def compressed(out: Path) -> Iterator[IO[bytes]]:
    """A stream whose bytes land in `out`, gzipped."""
    pigz = process.which("pigz")
    with out.open("wb") as target:
        if pigz is None:
            sink = _Gzip(target)
            yield sink  # type: ignore[misc]  # write is all that is asked of it
            sink.close()
            return
        child = subprocess.Popen([pigz, "-1", "--stdout"], stdin=subprocess.PIPE, stdout=target)
        assert child.stdin is not None
        try:
            yield child.stdin
            child.stdin.close()
            if child.wait():
                raise BuilderError(f"exit status {child.returncode} from: pigz")
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


class _Gzip:
    def __init__(self, target: IO[bytes]) -> None:
        self._target, self._zip = target, zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)

    def write(self, piece: bytes) -> int:
        self._target.write(self._zip.compress(piece))
        return len(piece)

    def close(self) -> None:
        self._target.write(self._zip.flush())


def _append(found: list[Extent], offset: int, size: int) -> None:
    if found and sum(found[-1]) == offset:
        found[-1] = (found[-1][0], found[-1][1] + size)
    else:
        found.append((offset, size))


def _list(some: list[Extent], room: int) -> bytes:
    body = b"".join(_number(offset) + _number(size) for offset, size in some)
    return body.ljust(room * 24, b"\0")


def _number(value: int) -> bytes:
    """12 bytes: octal digits and NUL, or 0x80 and a big-endian number."""
    return b"%011o\0" % value if value < 8**11 else b"\x80" + value.to_bytes(11, "big")
