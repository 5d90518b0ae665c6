"""One file in the place of another, under all its names; or nothing.

The new file is written beside the old one as `.NAME.slim-XXXXXXXX`, and every name changes by one rename: whoever opens or maps
the library sees the old file or the new one, whole. The old file is locked meanwhile, so that a second run keeps away; the
kernel drops the lock with the process. What a killed run has left, `sweep` takes away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from builder.errors import CapabilityError

LEFTOVER = re.compile(r"\.(?P<name>.+)\.slim-[0-9a-f]{8}")
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
"""EBADF: NFS, which locks only what is open for writing (flock(2))."""


def beside(path: Path) -> Path:
    """A free name in the same folder, for what will take the place of `path`."""
    return path.with_name(f".{path.name}.slim-{secrets.token_hex(4)}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[os.stat_result]:
    """The file's own figures, while no other run works on it. Raises CapabilityError if one does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise CapabilityError(f"{path}: another run is at work on it", hint="wait for it to end") from exc
        except OSError as exc:
            if exc.errno not in NO_LOCKS:
                raise
        yield os.fstat(descriptor)
    finally:
        os.close(descriptor)


def put(new: Path, names: Iterable[Path], old: os.stat_result) -> None:
    """`new` takes the place of the file that `names` are, with its owner, mode, extended attributes and times.

    old: the file as it was when `new` was made from it; raises CapabilityError if it has changed since. Nothing is left of
    `new` under its own name. Raises OSError before the first rename, or not at all where renaming works.
    """
    first, *others = names
    _like(new, first, old)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    now = first.lstat()
    if (now.st_ino, now.st_size, now.st_mtime_ns) != (old.st_ino, old.st_size, old.st_mtime_ns):
        raise CapabilityError(f"{first}: it has changed while it was read", hint="run it when nothing installs there")
    waiting = [(new, first)]
    try:
        for name in others:
            waiting.append((beside(name), name))
            os.link(new, waiting[-1][0])
        for part, name in waiting:
            part.replace(name)
    finally:
        for part, _ in waiting:
            part.unlink(missing_ok=True)
    for folder in {name.parent for _, name in waiting}:
        _flush(folder)


def _like(new: Path, path: Path, old: os.stat_result) -> None:
    """The owner first: a change of owner takes away capabilities and the set-user-ID bit.

    What the new file has from its folder, such as the rights of a default ACL, goes.
    """
    made = new.stat()
    if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
        os.chown(new, old.st_uid, old.st_gid)
    wanted, given = _attributes(path), _attributes(new)
    for name in given.keys() - wanted.keys():
        os.removexattr(new, name)
    for name, value in wanted.items():
        if given.get(name) != value:
            os.setxattr(new, name, value)
    new.chmod(old.st_mode & 0o7777)
    os.utime(new, ns=(old.st_atime_ns, old.st_mtime_ns))


def _attributes(path: Path) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(path, name) for name in os.listxattr(path)}
    except OSError as exc:
        if exc.errno != errno.ENOTSUP:
            raise
        return {}


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(leftovers: list[Path]) -> None:
    """Take away what a killed run has left, unless its file is in work now.

    Where that run had begun to rename a file with several names, the rest is renamed: they are one file again.
    """
    figures = {}
    for path in leftovers:
        with contextlib.suppress(FileNotFoundError):  # of another run, which is done with it
            figures[path] = path.lstat()
    waiting = Counter(one.st_ino for one in figures.values())
    for path, part in figures.items():
        found = LEFTOVER.fullmatch(path.name)
        name = path.with_name(found["name"]) if found else path
        try:
            with locked(name) as now:
                begun = part.st_nlink > waiting[part.st_ino] and part.st_mtime_ns == now.st_mtime_ns
                if begun and part.st_ino != now.st_ino:
                    path.replace(name)
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
        except (CapabilityError, OSError):  # in work, or a disk that cannot be written: then nothing here can be either
            continue
