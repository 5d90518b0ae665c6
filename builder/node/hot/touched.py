"""From reads of a device to the files that lie there."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from builder.node.hot import extents
from builder.node.hot.extents import PAGE, Extent
from builder.node.hot.hotlist import HotFile


def files(root: Path, reads: Sequence[tuple[int, int]]) -> list[HotFile]:
    """Files with a page in `reads`, (first byte, bytes) in order, in the order of their first one."""
    order = first_reads(reads)
    found = []
    for path, fd, size in extents.files(root):
        number, ranges = hits(extents.extents(fd, size), size, order)
        if ranges:
            found.append((number, HotFile(str(path.relative_to(root)), ranges)))
    return [file for _, file in sorted(found, key=lambda row: (row[0], row[1].path))]


def resident_files(root: Path) -> tuple[list[tuple[int, int]], list[HotFile]]:
    """(reads, files) from the page cache: ascending instead of in order, and no metadata, which lies outside of it."""
    reads: list[tuple[int, int]] = []
    found: list[HotFile] = []
    for path, fd, size in extents.files(root):
        ranges = extents.resident(fd, size)
        if not ranges:
            continue
        parts = extents.extents(fd, size)
        reads += [piece for offset, length in ranges for piece in _on_device(offset, length, parts)]
        found.append(HotFile(str(path.relative_to(root)), joined((offset, min(n, size - offset)) for offset, n in ranges)))
    return sorted(reads), found


def first_reads(reads: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Page of the device to the number of the first read that has it.

    >>> first_reads([(8192, 4096), (4096, 8192)])
    {2: 0, 1: 1}
    """
    order: dict[int, int] = {}
    for number, (start, size) in enumerate(reads):
        for page in range(start // PAGE, (start + size - 1) // PAGE + 1):
            order.setdefault(page, number)
    return order


def hits(parts: Sequence[Extent], size: int, order: dict[int, int]) -> tuple[int, tuple[tuple[int, int], ...]]:
    """(number of the first read, ranges) of a file of `size` bytes that lies in `parts`.

    >>> hits([Extent(0, 40960, 8192), Extent(8192, 4096, 4096)], 9000, {10: 5, 1: 3})
    (3, ((0, 4096), (8192, 808)))
    """
    first, ranges = sys.maxsize, []
    for part in parts:
        for page in range(part.start // PAGE, (part.start + part.size - 1) // PAGE + 1):
            offset = part.offset + page * PAGE - part.start
            if page in order and 0 <= offset < size:
                first = min(first, order[page])
                ranges.append((offset, min(PAGE, size - offset)))
    return first, joined(ranges)


def joined(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same (offset, bytes), ascending, neighbours as one.

    >>> joined([(4096, 4096), (0, 4096), (16384, 10)])
    ((0, 8192), (16384, 10))
    """
    found: list[tuple[int, int]] = []
    for offset, size in sorted(ranges):
        if found and offset <= sum(found[-1]):
            first = found[-1][0]
            found[-1] = (first, max(sum(found[-1]), offset + size) - first)
        else:
            found.append((offset, size))
    return tuple(found)


def _on_device(offset: int, length: int, parts: Sequence[Extent]) -> list[tuple[int, int]]:
    pieces = []
    for part in parts:
        first, last = max(offset, part.offset), min(offset + length, part.offset + part.size)
        if first < last:
            pieces.append((part.start + first - part.offset, last - first))
    return pieces
