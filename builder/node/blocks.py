"""Which blocks of a sparse disk hold anything: the part that a snapshot stores, costs and loads.

A block is 512 KiB, the unit of the EBS direct APIs (BlockSize 524288 in their reference). A block of zeros is not
uploaded: a volume made from a snapshot reads unknown blocks as zeros.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

BLOCK = 512 << 10
HASHING = min(4, os.cpu_count() or 1)  # threads; hashing lets go of Python's lock
BATCH = 256  # blocks that are under way at once, at most: their results, not their bytes
_ZERO = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class BlockMap:
    """size: bytes of the disk. blocks: indices of the blocks that hold a byte other than zero, ascending.

    sha256: over (index as 8 bytes big endian, sha256 of the block padded with zeros to 512 KiB) for each of them;
    equal disks have equal values, however sparse their files are.
    """

    size: int
    blocks: tuple[int, ...]
    sha256: str

    @property
    def nonzero_bytes(self) -> int:
        """Bytes that a snapshot of the disk holds: whole blocks."""
        return len(self.blocks) * BLOCK

    def to_json(self) -> dict[str, Any]:
        return {"size": self.size, "blocks": len(self.blocks), "nonzero_bytes": self.nonzero_bytes, "sha256": self.sha256}


def scan(path: Path) -> BlockMap:
    """Read the allocated parts of `path`, once. Holes are found with SEEK_DATA, so an empty 500 GiB file costs nothing."""
    outer = hashlib.sha256()
    found: list[int] = []
    with path.open("rb", buffering=0) as disk:
        size = os.fstat(disk.fileno()).st_size
        left = candidates(disk.fileno(), size)
        with ThreadPoolExecutor(HASHING) as pool:
            while batch := list(islice(left, BATCH)):
                for index, digest in zip(batch, pool.map(lambda at: _digest(disk.fileno(), at), batch), strict=True):
                    if digest:
                        found.append(index)
                        outer.update(index.to_bytes(8, "big") + digest)
    return BlockMap(size, tuple(found), outer.hexdigest())


def _digest(fd: int, index: int) -> bytes:
    """sha256 of the block, padded with zeros; empty if it is zeros alone."""
    block = os.pread(fd, BLOCK, index * BLOCK)
    return b"" if block == _ZERO[: len(block)] else hashlib.sha256(block.ljust(BLOCK, b"\0")).digest()


def candidates(fd: int, size: int) -> Iterator[int]:
    """Indices of the blocks that have an allocated byte, ascending, each once."""
    offset, following = 0, 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: no data after offset
            return
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        yield from range(max(following, start // BLOCK), (offset - 1) // BLOCK + 1)
        following = (offset - 1) // BLOCK + 1
