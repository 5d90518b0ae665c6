"""A store in a local or mounted folder.

    <root>/<key>             the objects
    <root>/.incoming/<random>   being written; renamed into place after fsync, so a crash leaves only such a file

A leftover of a killed run is removed by the next writer once it is a day old.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.stores.base import Entry, Stored, other_size, too_large
from builder.transfer.checksum import Buffer
from builder.transfer.disk import read_into
from builder.transfer.source import FolderSource, Source, no_such_folder

INCOMING = ".incoming"
STALE_S = 86_400
_COPY_BYTES = 4 << 20


class DirectoryStore:
    """Objects as files below `root`, which is made on the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ready = threading.Lock()
        self._prepared = False

    @property
    def url(self) -> str:
        return str(self.root)

    def size(self, key: str) -> int | None:
        with _faults(self.root / key):
            try:
                return self._path(key).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def stat(self, key: str) -> Stored | None:
        size = self.size(key)
        return None if size is None else Stored(size)

    def get(self, key: str, limit: int) -> Buffer | None:
        with _faults(self.root / key):
            try:
                fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                size = os.fstat(fd).st_size
                if size > limit:
                    raise too_large(self.url, key, size, limit)
                body = bytearray(size)
                del body[read_into(fd, memoryview(body), 0) :]
                return body
            finally:
                os.close(fd)

    def put(self, key: str, data: Buffer, *, sha256: str, crc64nvme: str, absent: bool = False) -> None:
        found = None if absent else self.size(key)
        if found is None:
            self._write(key, len(data), lambda fd: _write_all(fd, data), keep=True)
        elif found != len(data):
            raise other_size(self.url, key, found, len(data))

    def replace(self, key: str, data: Buffer, *, sha256: str, crc64nvme: str) -> None:
        self._write(key, len(data), lambda fd: _write_all(fd, data), keep=False)

    def upload(self, key: str, file: BinaryIO, size: int) -> None:
        def copy(fd: int) -> None:
            left = size
            while left:
                piece = file.read(min(_COPY_BYTES, left))
                if not piece:
                    raise IntegrityError(
                        f"{self.url}/{key}: the source ended after {size - left} of {size} bytes", where={"key": key}
                    )
                _write_all(fd, piece)
                left -= len(piece)

        self._write(key, size, copy, keep=False)

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        return ((entry.key, entry.size) for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Entry]:
        folder = self.root / prefix.rpartition("/")[0]
        found = []
        with _faults(folder):
            if not self.root.is_dir():  # an empty store and a mistyped path differ
                raise no_such_folder(self.root)
            for at, folders, names in os.walk(folder, onerror=_unlistable):
                folders[:] = [d for d in folders if Path(at, d) != self.root / INCOMING]
                for name in names:
                    path = Path(at, name)
                    with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                        seen = path.stat()
                        found.append(Entry(path.relative_to(self.root).as_posix(), seen.st_size, seen.st_mtime))
        yield from sorted((e for e in found if e.key.startswith(prefix)), key=lambda e: e.key)

    def delete(self, key: str) -> None:
        with _faults(self.root / key):
            self._path(key).unlink(missing_ok=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root.absolute(),)

    def source(self) -> Source:
        return FolderSource(self.root)

    def _path(self, key: str) -> Path:
        if key.startswith("/") or any(part in ("", ".", "..", INCOMING) for part in key.split("/")):
            raise ConfigError(f"{self.url}: key {key!r} is not a plain relative path")
        return self.root / key

    def _write(self, key: str, size: int, fill: Callable[[int], None], *, keep: bool) -> None:
        """A temporary file, filled, fsynced, renamed; then its folder fsynced. keep: what is there wins."""
        target = self._path(key)
        with _faults(target, size):
            self._prepare()
            part = self.root / INCOMING / secrets.token_hex(8)
            try:
                fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                try:
                    fill(fd)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                target.parent.mkdir(parents=True, exist_ok=True)
                _place(part, target, keep=keep)
            finally:
                part.unlink(missing_ok=True)
            _sync_folder(target.parent)

    def _prepare(self) -> None:
        with self._ready:
            if self._prepared:
                return
            incoming = self.root / INCOMING
            incoming.mkdir(parents=True, exist_ok=True)
            for leftover in incoming.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if leftover.stat().st_mtime < time.time() - STALE_S:
                        leftover.unlink()
            self._prepared = True


def _place(part: Path, target: Path, *, keep: bool) -> None:
    if keep:
        try:
            os.link(part, target)  # unlike a rename, never replaces
            return
        except FileExistsError:
            return
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise
            # a file system without hard links (FAT, some FUSE): the rename is atomic too, and the bytes are the same
    part.rename(target)


def _write_all(fd: int, data: Buffer) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlistable(exc: OSError) -> None:
    if not isinstance(exc, FileNotFoundError):
        raise exc


@contextlib.contextmanager
def _faults(path: Path, size: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _error(path, size, exc) from exc


def _error(path: Path, size: int, exc: OSError) -> BuilderError:
    where = {"key": str(path)}
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        free = _free(path)
        what = f"{path}: no space: {size} bytes needed" + (f", {free} free" if free is not None else "")
        return CapabilityError(what, hint="free space, or use another store; what is there is kept", where=where)
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CapabilityError(f"{path}: {exc.strerror}", hint="check the folder's owner and permissions", where=where)
    return RemoteError(f"{path}: {exc.strerror}", hint="check the disk or the mount", where=where)


def _free(path: Path) -> int | None:
    for folder in path.parents:
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            return found.f_bavail * found.f_frsize
    return None
