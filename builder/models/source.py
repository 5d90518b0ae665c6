"""What is asked for (ModelRef) and what that turned out to be (ModelSnapshot)."""

from __future__ import annotations

import fnmatch
import io
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from builder.errors import CapabilityError, ConfigError, IntegrityError, printable
from builder.format.manifest import safe_path

SETTLED_S = 2.0  # the coarsest time stamps in use, those of FAT
IGNORED = (".git", ".cache", ".builder")  # version control, the hub's download state, our own markers


@dataclass(frozen=True)
class ModelRef:
    """source: a folder, a file, or hf://organisation/model.  revision: of a hub model; None means its main branch.

    include, exclude: glob patterns over the path inside the model (`*` also matches `/`); exclude wins.
    token_env: name of the environment variable with the hub's token; the token itself is never part of a value.
    """

    source: str
    revision: str | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    token_env: str = ""


class Reading(Protocol):
    """An open file of a model. Thread-safe."""

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer only where the file ends. Raises RemoteError, or OSError for a local file."""

    def require_unchanged(self) -> None:
        """Raises IntegrityError if the file is no longer the one of the snapshot."""


@runtime_checkable
class Filling(Reading, Protocol):
    """A Reading that also reads into memory of the caller's."""

    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill `view` with the bytes from `offset` on; how many there were. Raises as read_at does."""


class ModelFile(Protocol):
    """One file of a model, wherever its bytes are; picklable, so that other machines can open it too.

    path: inside the model, with "/".  size: bytes, when the snapshot was taken.  sha256: what its origin says it is, or "".
    """

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def identity(self) -> str:
        """Equal only for equal bytes, as far as can be told without reading them; "" where nothing can be told."""

    @property
    def at(self) -> str:
        """Where it is, for messages."""

    def open(self) -> AbstractContextManager[Reading]:
        """Raises IntegrityError if it is gone or no longer the file of the snapshot, CapabilityError, RemoteError."""


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine. size, mtime_ns, inode: when the snapshot was taken; reading compares. inode: 0 for any.

    sha256: what its origin says, or "".  identity: see ModelFile; holds the path and every stamp that a write changes.
    """

    path: str
    location: Path
    size: int
    mtime_ns: int
    inode: int
    sha256: str = ""
    identity: str = ""

    @property
    def at(self) -> str:
        return printable(str(self.location))

    @contextmanager
    def open(self) -> Iterator[Reading]:
        try:
            fd = os.open(self.location, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise changed(self, "it is gone") from exc
        except OSError as exc:
            raise unreadable(self.location, exc) from exc
        try:
            reading = _LocalReading(self, fd)
            reading.require_unchanged()
            yield reading
        finally:
            os.close(fd)


@dataclass(frozen=True)
class _LocalReading:
    file: LocalFile
    fd: int

    def read_at(self, offset: int, size: int) -> bytes:
        body = os.pread(self.fd, size, offset)
        while body and len(body) < size and (more := os.pread(self.fd, size - len(body), offset + len(body))):
            body += more  # Linux returns at most 2 GiB at once
        return body

    def read_into(self, offset: int, view: memoryview) -> int:
        done = 0
        while done < len(view) and (count := os.preadv(self.fd, [view[done:]], offset + done)):
            done += count
        return done

    def require_unchanged(self) -> None:
        found, file = os.fstat(self.fd), self.file
        if found.st_size != file.size:
            raise changed(file, f"it had {file.size} bytes, now {found.st_size}")
        if found.st_mtime_ns != file.mtime_ns or file.inode not in (0, found.st_ino):
            raise changed(file, "it was written to")


class Stream(io.RawIOBase):
    """A `Reading` of `size` bytes as a stream from its start, for libraries that want one. Closing it closes nothing."""

    def __init__(self, reading: Reading, size: int) -> None:
        self._reading, self._size, self._at = reading, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        body = self._reading.read_at(self._at, min(len(view), self._size - self._at))
        view[: len(body)] = body
        self._at += len(body)
        return len(body)


def changed(file: ModelFile, what: str) -> IntegrityError:
    return IntegrityError(
        f"{file.at}: changed while it was pushed: {what}",
        hint="push again when nothing writes to it; no manifest was written",
        where={"file": file.path},
    )


@dataclass(frozen=True)
class ModelSnapshot:
    """A model at one moment. source: hf://... or the bare name of a folder or file, so that equal models have equal
    manifests wherever they lay.  revision: the hub's commit, or "".  files: by path.
    """

    source: str
    revision: str
    files: tuple[ModelFile, ...]

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files)

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "revision": self.revision,
            "size": self.size,
            "files": [{"path": f.path, "size": f.size} for f in self.files],
        }


def chosen(path: str, ref: ModelRef) -> bool:
    """Whether the patterns of `ref` take `path`."""
    return _matches(path, ref.include) and not _matches(path, ref.exclude)


def model_file(path: str, location: Path, *, sha256: str = "") -> LocalFile:
    """The file at `location` as part of a model. Raises for what is not a readable regular file or has an unsafe name."""
    try:
        safe_path(path)
        path.encode()
    except (ValueError, UnicodeEncodeError) as exc:
        raise ConfigError(
            f"{printable(str(location))}: cannot be part of a model: {exc}", hint="rename it, or exclude it"
        ) from exc
    try:
        found = location.stat()
    except FileNotFoundError as exc:
        raise IntegrityError(
            f"{printable(str(location))}: a link to nothing", hint="download the model again", where={"file": path}
        ) from exc
    except OSError as exc:
        raise unreadable(location, exc) from exc
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{printable(str(location))}: not a regular file", hint="exclude it")
    return LocalFile(path, location, found.st_size, found.st_mtime_ns, found.st_ino, sha256, _identity(location, found))


def _identity(location: Path, found: os.stat_result) -> str:
    """ "" for a file written a moment ago: a second write could leave the same stamps (git's "racily clean" entries)."""
    if time.time() - max(found.st_mtime, found.st_ctime) < SETTLED_S:
        return ""
    stamps = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return f"file:{location.absolute()}:" + ":".join(map(str, stamps))


def unreadable(location: Path, exc: OSError) -> CapabilityError:
    return CapabilityError(
        f"{printable(str(location))}: cannot be read: {exc.strerror}",
        hint="check its permissions",
        where={"file": str(location)},
    )


def complete(ref: ModelRef, source: str, revision: str, files: Iterable[ModelFile]) -> ModelSnapshot:
    """The snapshot; an empty one is refused."""
    ordered = tuple(sorted(files, key=lambda f: f.path))
    if not ordered:
        patterns = f"include {list(ref.include)}, exclude {list(ref.exclude)}"
        raise ConfigError(f"{ref.source}: no file to take ({patterns})", hint="check the path and the patterns")
    return ModelSnapshot(source, revision, ordered)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, p + "*" if p.endswith("/") else p) for p in patterns)
