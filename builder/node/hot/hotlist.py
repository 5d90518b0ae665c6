"""What a start touches: 512 KiB blocks of the disk in the order of first use. One JSON file, bound to one disk by its content.

{"format": 1, "disk": {"sha256", "size", "offset", "nonzero_blocks"}, "target", "images": [references], "unit": 524288,
 "method": "block trace" | "page cache", "blocks": [index, ...], "files": [{"path", "ranges": [[offset, bytes], ...]}],
 "share", "bytes", "checksum": sha256 over the rest as canonical JSON}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import ConfigError, IntegrityError
from builder.node.blocks import BLOCK

FORMAT = 1
TRACED, RESIDENT = "block trace", "page cache"
AGAIN = "trace the disk again: builder bake hot DISK"


@dataclass(frozen=True, slots=True)
class HotFile:
    """A file that was read. path: from the root of the file system. ranges: (offset, bytes), ascending, apart."""

    path: str
    ranges: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "ranges": [list(one) for one in self.ranges]}


@dataclass(frozen=True, slots=True)
class HotList:
    """disk_sha256: the content it was taken from (builder.node.blocks). size: bytes of that disk.

    offset: byte at which the file system begins on the disk. nonzero_blocks: how many blocks of the disk hold anything.
    images: references that were started. method: TRACED, whose order is that of first use, or RESIDENT, whose blocks are
    ascending and lack file system metadata. blocks: indices on the disk, each once, none of them all zeros.
    """

    disk_sha256: str
    size: int
    offset: int
    nonzero_blocks: int
    target: str
    images: tuple[str, ...]
    method: str
    blocks: tuple[int, ...]
    files: tuple[HotFile, ...] = ()

    @property
    def bytes(self) -> int:
        return len(self.blocks) * BLOCK

    @property
    def share(self) -> float:
        """Of the blocks that hold anything, 0 to 1."""
        return len(self.blocks) / max(1, self.nonzero_blocks)

    @property
    def ordered(self) -> bool:
        return self.method == TRACED

    def of_disk(self, sha256: str, path: Path) -> HotList:
        """Itself. Raises IntegrityError if it was taken from a disk with another content."""
        if sha256 != self.disk_sha256:
            raise IntegrityError(
                f"{path}: its content is {sha256}; the list of hot blocks was taken from {self.disk_sha256}", hint=AGAIN
            )
        return self

    def to_json(self) -> dict[str, Any]:
        body = {
            "format": FORMAT,
            "disk": {
                "sha256": self.disk_sha256, "size": self.size, "offset": self.offset, "nonzero_blocks": self.nonzero_blocks
            },
            "target": self.target,
            "images": list(self.images),
            "unit": BLOCK,
            "method": self.method,
            "blocks": list(self.blocks),
            "files": [one.to_json() for one in self.files],
            "share": round(self.share, 4),
            "bytes": self.bytes,
        }  # fmt: skip
        return {**body, "checksum": _checksum(body)}

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), separators=(",", ":")) + "\n")


def read(path: Path) -> HotList:
    """The list in `path`. Raises ConfigError if there is none, IntegrityError if it is damaged."""
    try:
        raw = json.loads(path.read_bytes())
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}", hint=AGAIN) from exc
    except ValueError as exc:
        raise IntegrityError(f"{path}: not JSON: {exc}", hint=AGAIN) from exc
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise IntegrityError(f"{path}: format {found!r}, expected {FORMAT}", hint=AGAIN)
    told = raw.pop("checksum", None)
    if told != _checksum(raw):
        raise IntegrityError(f"{path}: damaged: checksum is {_checksum(raw)}, expected {told}", hint=AGAIN)
    try:
        return _parse(raw)
    except (KeyError, TypeError, ValueError) as exc:
        raise IntegrityError(f"{path}: not a list of hot blocks: {exc}", hint=AGAIN) from exc


def _parse(raw: dict[str, Any]) -> HotList:
    disk, blocks = raw["disk"], tuple(int(index) for index in raw["blocks"])
    outside = [index for index in blocks if not 0 <= index * BLOCK < disk["size"]]
    if raw["unit"] != BLOCK or outside or len(set(blocks)) != len(blocks):
        raise ValueError(f"unit {raw['unit']}, blocks outside of the disk: {outside[:3]}")
    files = tuple(HotFile(one["path"], tuple((a, b) for a, b in one["ranges"])) for one in raw["files"])
    images = tuple(map(str, raw["images"]))
    return HotList(disk["sha256"], disk["size"], disk["offset"], disk["nonzero_blocks"], raw["target"], images, raw["method"],
                   blocks, files)  # fmt: skip


def in_order(reads: Iterable[tuple[int, int]], offset: int, known: frozenset[int]) -> tuple[int, ...]:
    """Blocks of the disk that `reads` touch, each at its first use.

    reads: (first byte, bytes), counted from `offset`, where the file system begins.  known: blocks that hold anything; a block
    of zeros is not in the snapshot, so reading it loads nothing.

    >>> in_order([(600_000, 4096), (0, 4096), (500_000, 100_000)], 1 << 20, frozenset(range(9)))
    (3, 2)
    """
    found: dict[int, None] = {}
    for start, size in reads:
        first, last = (offset + start) // BLOCK, (offset + start + max(1, size) - 1) // BLOCK
        found |= dict.fromkeys(index for index in range(first, last + 1) if index in known)
    return tuple(found)


def runs(blocks: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of neighbours that follow each other.

    >>> list(runs([7, 8, 9, 3, 1, 2]))
    [(7, 3), (3, 1), (1, 2)]
    """
    first, count = -1, 0
    for index in blocks:
        if count and index == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
