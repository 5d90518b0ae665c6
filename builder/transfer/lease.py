"""Leases on models: who uses one locks its use file, who removes one must have that lock alone.

All locks are flock(2): the kernel drops them with the last process that has the open file, however that one ends.

    .<64 hex>.use     shared: the model is in use, or being fetched. Its mtime is the last use, its content the model's
                      size: a download counts in full before its blocks are on disk.
    .<64 hex>.lock    exclusive: someone writes the folder (`claim.locked`)

A user opens the use file, takes the lock, sees that the name still stands for the locked file, and only then looks for
the model. An evictor takes both locks exclusively, without waiting, before it renames the folder away, and removes the
use file before it lets go. Hence no race. The user was first: the evictor gets no lock and leaves the model. The evictor
was first: the user waits, finds the name gone, locks a new file, sees no model, and fetches it. The evictor was killed
in between: the model is there (not renamed yet) or not (renamed), and the use file says nothing about either.

The use file is made before the first byte is fetched, so whoever sees a model of the cache can lock it, through a
read-only mount too. A model without one was put there by something else; it needs no lease, for no cache removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.format.volume import lock_file, use_file
from builder.transfer.claim import is_same

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS}


class Lease:
    """The model is in use until `release`, or until the last process that has `fd` ends.

    fd: pass it on to a child that uses the model too. None where there is nothing to lock: a model that no cache
    removes, or a file system without locks, on which no cache removes anything.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = fd

    def touch(self) -> None:
        """Used now. A read-only mount cannot note it."""
        if self.fd is not None:
            with contextlib.suppress(OSError):
                os.utime(self.fd)

    def note_size(self, size: int) -> None:
        """What the model will take, for whoever makes room meanwhile. A full disk, or a file of another user, may not."""
        if self.fd is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self.fd, b"%020d\n" % size, 0)

    def release(self) -> None:
        """Closed, not unlocked: a child that has the file keeps the lock. Doing it again does nothing."""
        self.touch()
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)


def hold(folder: Path, *, create: bool = False) -> Lease:
    """A lease on a model, whether it is there or not: look after this returns. Waits for no more than one eviction.

    create: make the use file: this caller is about to fetch the model.
    """
    path = use_file(folder)
    while True:
        fd = _open(path, create)
        if fd is None:
            return Lease()
        try:
            same = _flock(fd, fcntl.LOCK_SH) and is_same(fd, path)
        except OSError as exc:
            os.close(fd)
            if exc.errno in _NO_LOCKS:
                return Lease()
            raise
        except BaseException:
            os.close(fd)
            raise
        if same:
            if create:
                with contextlib.suppress(OSError):  # another user's: he has done it
                    os.fchmod(fd, 0o664)  # pods of other users and one group note their use too
            lease = Lease(fd)
            lease.touch()
            return lease
        os.close(fd)


@contextmanager
def alone(folder: Path, *, make_use: bool) -> Iterator[bool]:
    """Whether nobody uses or writes the model; if so, nobody begins to while the block runs."""
    held: list[int] = []
    try:
        for path, create in ((use_file(folder), make_use), (lock_file(folder), True)):
            fd = _try(path, create)
            if fd is None:
                break
            held.append(fd)
        yield len(held) == 2
    finally:
        if len(held) == 2:
            lock_file(folder).unlink(missing_ok=True)
        for fd in held:
            os.close(fd)


def _try(path: Path, create: bool) -> int | None:
    """The file, locked exclusively; None if another has it, it is not there, or cannot be locked."""
    fd = _open(path, create)
    if fd is None:
        return None
    try:
        if _flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB) and is_same(fd, path):
            return fd
    except OSError as exc:
        os.close(fd)
        if exc.errno in _NO_LOCKS:
            return None
        raise
    os.close(fd)
    return None


def _flock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        return False
    return True


def _open(path: Path, create: bool) -> int | None:
    """The file, for writing if this user may; None if it is not there, or may not be opened or made."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    for how in (os.O_RDWR | (os.O_CREAT if create else 0), os.O_RDONLY):
        try:
            fd = os.open(path, flags | how, 0o664)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno not in _NOT_OURS:
                raise
            continue
        return fd
    return None


def is_locked(path: Path) -> bool:
    """Whether someone has the file locked now, or it cannot be told."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not _flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)


def holders(folder: Path, locks: Path = Path("/proc/locks")) -> list[int]:
    """Processes that took a lease on the model, as far as this one can see them: other containers' may be missing.

    Source: proc_locks(5): `1: FLOCK  ADVISORY  READ  PID MAJOR:MINOR:INODE 0 EOF`; the process that locked, not its heirs.
    """
    pids = set[int]()
    with contextlib.suppress(OSError):
        inode = str(use_file(folder).stat().st_ino)
        for line in locks.read_text().splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode and int(fields[4]) > 0:
                pids.add(int(fields[4]))
    return sorted(pids)
