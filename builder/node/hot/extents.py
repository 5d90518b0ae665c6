"""Where files lie on a block device, and which of their pages are in memory.

Sources: the kernel's Documentation/filesystems/fiemap.rst and include/uapi/linux/fiemap.h; mincore(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
_HEAD = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQ16xL12x")  # logical, physical, length, 2 reserved, flags, 3 reserved: 56 bytes
_ROOM = 128
_LAST, _UNKNOWN, _UNWRITTEN, _INLINE = 0x1, 0x2, 0x800, 0x200
PAGE = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes. offset: in the file. start: on the device of the file system."""

    offset: int
    start: int
    size: int


def extents(fd: int, size: int) -> list[Extent]:
    """Where the file's bytes lie; holes, and what was allocated but never written, left out. OSError where unsupported."""
    found: list[Extent] = []
    at = 0
    while at < size:
        buffer = bytearray(_HEAD.size + _ROOM * _EXTENT.size)
        _HEAD.pack_into(buffer, 0, at, size - at, 0, 0, _ROOM, 0)
        fcntl.ioctl(fd, FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        for number in range(count):
            offset, start, length, flags = _EXTENT.unpack_from(buffer, _HEAD.size + number * _EXTENT.size)
            at = offset + length
            if not flags & (_UNKNOWN | _UNWRITTEN | _INLINE):
                found.append(Extent(offset, start, length))
            if flags & _LAST:
                return found
        if not count:
            return found
    return found


def files(root: Path) -> Iterator[tuple[Path, int, int]]:
    """(path, open descriptor, bytes) of every regular file below `root` that holds anything; other mounts are not entered."""
    device = root.stat().st_dev
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if Path(folder, name).lstat().st_dev == device)
        for name in sorted(names):
            path = Path(folder, name)
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or not found.st_size:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
            try:
                yield path, fd, found.st_size
            finally:
                os.close(fd)


def resident(fd: int, size: int) -> list[tuple[int, int]]:
    """(offset, bytes) of the parts of the file that are in the page cache, whole pages, ascending, apart."""
    pages = -(-size // PAGE)
    answer = (ctypes.c_ubyte * pages)()
    with mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:  # writable: ctypes asks for it
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), answer):
            raise OSError(ctypes.get_errno(), "mincore")
    found: list[tuple[int, int]] = []
    for page in (number for number, state in enumerate(answer) if state & 1):
        if found and sum(found[-1]) == page * PAGE:
            found[-1] = (found[-1][0], found[-1][1] + PAGE)
        else:
            found.append((page * PAGE, PAGE))
    return found
