"""An initial RAM disk: a cpio archive in the "newc" format, which the Linux kernel unpacks into its first root.

Source of the format: Linux Documentation/driver-api/early-userspace/buffer-format.rst. The archive is not compressed: an
emulated processor unpacks slower than it copies (measured: 116 MiB plain are there after 1 s).
"""

from __future__ import annotations

import itertools
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the archive: one of body (its bytes), source (a file to copy) and link (the target of a symbolic link).

    mode: permission bits of a file.
    """

    body: bytes = b""
    source: Path | None = None
    link: str = ""
    mode: int = 0o644


def write(out: Path, entries: Mapping[str, Entry], *, folders: tuple[str, ...] = ()) -> int:
    """Write the archive; missing parent folders are added. Returns its size in bytes.

    entries: path without a leading slash to entry. folders: empty folders, 0755. Everything is owned by root.
    """
    parents = {str(p) for path in [*entries, *folders] for p in PurePosixPath(path).parents} | set(folders)
    numbers = itertools.count(1)
    with out.open("wb") as archive:
        for name in sorted(parents - {"."} | {"dev"}):  # a parent sorts before its children
            _header(archive, name, next(numbers), stat.S_IFDIR | 0o755, 0)
        # The console must be there before anything is mounted: the kernel opens it for the first process.
        _header(archive, "dev/console", next(numbers), stat.S_IFCHR | 0o600, 0, device=(5, 1))
        for name, entry in sorted(entries.items()):
            _file(archive, name, next(numbers), entry)
        _header(archive, _TRAILER, 0, 0, 0)
        return archive.tell()


def _file(archive: BinaryIO, name: str, number: int, entry: Entry) -> None:
    if entry.source is not None:
        with entry.source.open("rb") as body:
            size = entry.source.stat().st_size
            _header(archive, name, number, stat.S_IFREG | entry.mode, size)
            shutil.copyfileobj(body, archive, 1 << 20)
    else:
        raw = entry.link.encode() or entry.body
        kind = stat.S_IFLNK | 0o777 if entry.link else stat.S_IFREG | entry.mode
        _header(archive, name, number, kind, len(raw))
        archive.write(raw)
    _pad(archive)


def _header(archive: BinaryIO, name: str, number: int, mode: int, size: int, device: tuple[int, int] = (0, 0)) -> None:
    raw = name.encode() + b"\0"
    #        ino     mode  uid gid nlink mtime size  device of file  rdev    name       check
    fields = (number, mode, 0, 0, 1, 0, size, 0, 0, *device, len(raw), 0)
    archive.write(_MAGIC + b"".join(b"%08X" % value for value in fields) + raw)
    _pad(archive)


def _pad(archive: BinaryIO) -> None:
    archive.write(bytes(-archive.tell() % 4))
