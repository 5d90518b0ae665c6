"""Who may write a model folder, and when it counts as complete (names: `builder.format.volume`)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError
from builder.format.manifest import Manifest
from builder.format.volume import MANIFEST, MARKER, lock_file, marker_digest
from builder.transfer.progress import Progress

_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE}


def is_complete(folder: Path, manifest: Manifest, digest: str) -> bool:
    """Whether the model is here: marker and sizes agree. No content is read; `check` does that.

    digest: of `manifest`. Needs no lock: a marker appears only with the whole folder.
    Raises IntegrityError if the marker is there and a file is missing or has another size.
    """
    if marker_digest(folder) != digest:
        return False
    wrong = [f for f in manifest.files if not _has_size(folder / f.path, f.size)]
    if wrong:
        raise IntegrityError(
            f"{folder}: marked complete, but {len(wrong)} of {len(manifest.files)} files are missing or have another size: "
            + ", ".join(f.path for f in wrong[:10]),
            hint=f"run `builder weights repair --local {folder}`, or remove the folder",
            where={"file": str(folder / wrong[0].path)},
        )
    return True


def refuse_other(folder: Path, digest: str) -> None:
    """Raises unless a model may be put here: nothing is here, or an empty folder.

    Under the lock, for another writer may make the folder appear between two looks.
    Raises ConfigError if something else is here, IntegrityError for a model without its marker, CapabilityError for a
    mount point.
    """
    found = marker_digest(folder)
    if found is not None:
        raise ConfigError(f"{folder}: holds {found}, not {digest}", hint="choose another folder, or remove this one")
    if (folder / MANIFEST).exists():
        raise IntegrityError(
            f"{folder}: a model without its marker: a repair was interrupted, or the marker is damaged",
            hint=f"run `builder weights repair --local {folder}`, or remove the folder",
            where={"file": str(folder / MARKER)},
        )
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder", hint="choose another folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: not empty, and not a restored model", hint="choose another folder, or empty this one")
    if os.path.ismount(folder):
        raise CapabilityError(f"{folder}: a mount point cannot be replaced", hint=f"restore below it: {folder}/model")


@contextmanager
def locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the folder's lock: one writer per machine. Waits for another one, and says so.

    The kernel drops the lock when its holder dies, however it dies. The lock file is removed on the way out, so a
    waiter that wakes up on a removed file takes the lock again on the new one.
    """
    path = lock_file(folder)
    fd = _lock(path, progress)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """OSError inside becomes CapabilityError for a full disk, a quota, missing permission; BuilderError otherwise."""
    try:
        yield
    except OSError as exc:
        what = f"{exc.filename or folder}: {exc.strerror or exc}"
        where = {"file": str(exc.filename or folder)}
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapabilityError(what, hint="free disk space and run again; finished chunks are kept", where=where) from exc
        if exc.errno in _MACHINE:
            raise CapabilityError(what, hint="run as a user who may write there", where=where) from exc
        raise BuilderError(what, where=where) from exc


def need_space(folder: Path, bytes_needed: int) -> None:
    """Raises CapabilityError if the file system of `folder` has fewer free bytes for this user."""
    fs = os.statvfs(folder)
    free = fs.f_bavail * fs.f_frsize
    if free < bytes_needed:
        raise CapabilityError(
            f"{folder}: {bytes_needed} bytes needed, {free} free",
            hint=f"free {bytes_needed - free} bytes, or restore elsewhere",
            where={"file": str(folder)},
        )


def sync(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, body: bytes) -> None:
    """A small file, on disk when this returns, mode 0644."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        write_at(fd, body, 0)
        os.fchmod(fd, 0o644)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_at(fd: int, body: bytes | bytearray | memoryview, offset: int) -> None:
    """All of `body` at `offset`."""
    view, done = memoryview(body), 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def _lock(path: Path, progress: Progress) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _flock(fd, path, progress)
            same = is_same(fd, path)
        except BaseException:
            os.close(fd)
            raise
        if same:
            return fd
        os.close(fd)


def is_same(fd: int, path: Path) -> bool:
    """Whether the locked file is still the one that the name stands for: its holder before may have removed it."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _flock(fd: int, path: Path, progress: Progress) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        task = progress.add(f"wait for another writer ({path})")
        fcntl.flock(fd, fcntl.LOCK_EX)
        progress.done(task)


def _has_size(path: Path, size: int) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size
