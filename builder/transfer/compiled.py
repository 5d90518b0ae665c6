"""A cache root into an artifact, and an artifact into a cache root. The form is builder/format/compiled.py's.

Left out when captured: locks, temporary and half-written files, sockets and links; weights, which some engines keep beside
their kernels. Times: torch, Triton and the others key on contents, so their times are not kept and the same files make the same
artifact. ninja (FlashInfer, torch extensions, TVM FFI) compares times of outputs with its log, so below a folder that has a
`.ninja_log` times are kept. Source: ninja 1.13, src/graph.cc, RecomputeOutputDirty.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError
from builder.format.compiled import (
    ALL,
    CAPTURE_AGAIN,
    FILES,
    FINGERPRINT,
    IN_ROOT,
    MAX_FINGERPRINT_BYTES,
    MAX_JSON_BYTES,
    TAR,
    Entry,
    Fingerprint,
    files_bytes,
    parse_files,
    parse_fingerprint,
)
from builder.format.manifest import RESERVED, safe_path
from builder.transfer.claim import disk_errors, need_space, write_synced

SOURCE = "compile-cache"  # what the manifest names as its source, whatever folder it was
WINDOW = 1 << 20
NINJA = ".ninja_log"
LEFT_OUT = ("*.lock", "*.lck", "*.pid", "*.tmp", "*.tmp.*", "tmp.*", ".tmp*", "*.partial", ".nfs*", "*.safetensors", "*.gguf")
LOST = "lost+found"  # root's own, in the root of an ext file system
TEMPORARY_FOLDERS = ("tmp", "locks", RESERVED)


@dataclass(frozen=True)
class Artifact:
    """A captured cache in `folder`, its fingerprint and list read and checked; the tar's bytes are checked when used."""

    folder: Path
    fingerprint: Fingerprint
    entries: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        f = self.fingerprint
        own = {"folder": str(self.folder), "key": f.key, "files": len(self.entries), "bytes": self.bytes}
        return own | {"fields": dict(f.fields), "about": dict(f.about)}


def counted(root: Path) -> dict[str, Path]:
    """Every file below `root` that is compiled work, by its path with "/". One that vanishes meanwhile is not there.

    Raises CapabilityError for a folder that this user may not read.
    """
    found: dict[str, Path] = {}
    with readable(root):
        for at, folders, names in walk(root):
            folders[:] = [name for name in folders if name not in TEMPORARY_FOLDERS and not _left_out(name)]
            for name in names:
                path = Path(at, name)
                if not _left_out(name) and _regular(path):
                    found[path.relative_to(root).as_posix()] = path
    return found


def walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk without the root's lost+found. Raises OSError for a folder that cannot be read, not for one that vanished."""

    def failed(exc: OSError) -> None:
        if not isinstance(exc, FileNotFoundError):
            raise exc

    for at, folders, names in os.walk(root, onerror=failed):
        if Path(at) == root and LOST in folders:
            folders.remove(LOST)
        yield at, folders, names


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """OSError inside, but a file that is not there, becomes CapabilityError for missing permission; BuilderError otherwise."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as exc:
        what, where = f"{exc.filename or path}: {exc.strerror or exc}", {"file": str(exc.filename or path)}
        if exc.errno in (errno.EACCES, errno.EPERM):
            raise CapabilityError(what, hint="run as a user who may read it, such as the server's own", where=where) from exc
        raise BuilderError(what, where=where) from exc


def captured_fingerprint(root: Path) -> Fingerprint:
    """What the runtime wrote into the cache root. Raises ConfigError if it did not, IntegrityError if it is damaged."""
    path = root / IN_ROOT
    try:
        body = _read(path, MAX_FINGERPRINT_BYTES, os.O_NOFOLLOW)
    except FileNotFoundError as exc:
        raise ConfigError(
            f"{path}: not there; the runtime writes it before it starts the engine",
            hint="warm the cache with `python -m builder.runtime serve`, in an image that sets BUILDER_COMPILE_CACHE_ROOT",
        ) from exc
    return parse_fingerprint(body, str(path))


def pack(root: Path, folder: Path, about: dict[str, str]) -> Artifact:
    """The cache root as an artifact in the new or empty `folder`. The same files and fingerprint make the same bytes.

    Raises ConfigError if nothing was compiled there, a file's name is not one that can be restored, or `folder` is not empty;
    IntegrityError if a file changes while it is read.
    """
    fingerprint = captured_fingerprint(root)
    files = counted(root)
    if not files:
        raise ConfigError(f"{root}: nothing was compiled there", hint="ask the server something first, so that it compiles")
    new = not folder.exists()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder}: not empty", hint="name a new folder, or empty this one")
    try:
        return _pack(root, files, fingerprint, folder, about)
    except BaseException:  # not a sibling that is renamed: the folder may be a mount point
        for name in ALL:
            (folder / name).unlink(missing_ok=True)
        if new:
            folder.rmdir()
        raise


def _pack(root: Path, files: dict[str, Path], fingerprint: Fingerprint, folder: Path, about: dict[str, str]) -> Artifact:
    entries = []
    with disk_errors(folder), tarfile.open(folder / TAR, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(files):
            entries.append(_add(tar, name, files[name], root))
    body = files_bytes(entries)
    whole = replace(fingerprint, about={**fingerprint.about, **about}, files=hashlib.sha256(body).hexdigest())
    with disk_errors(folder):
        write_synced(folder / FILES, body)
        write_synced(folder / FINGERPRINT, whole.to_bytes())
    return Artifact(folder, whole, tuple(entries))


def load(folder: Path) -> Artifact:
    """The artifact in `folder`. Raises ConfigError if there is none, IntegrityError if it is damaged."""
    try:
        fingerprint = parse_fingerprint(_read(folder / FINGERPRINT, MAX_FINGERPRINT_BYTES), str(folder / FINGERPRINT))
    except (FileNotFoundError, NotADirectoryError) as exc:
        hint = "give the folder that `builder cache capture --to` wrote"
        raise ConfigError(f"{folder}: no captured compile cache ({FINGERPRINT} is not there)", hint=hint) from exc
    try:
        body = _read(folder / FILES, MAX_JSON_BYTES)
    except FileNotFoundError as exc:
        raise IntegrityError(f"{folder / FILES}: not there", hint=CAPTURE_AGAIN, where={"file": str(folder / FILES)}) from exc
    return Artifact(folder, fingerprint, tuple(parse_files(body, str(folder / FILES), fingerprint.files)))


def unpack(artifact: Artifact, root: Path) -> None:
    """Every file into the cache root, its sha256 checked on the way: each is there whole or not at all.

    Raises IntegrityError if the tar holds other files, or other bytes, than the list; CapabilityError if `root` cannot be
    written.
    """
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        need_space(root, artifact.bytes)
        for entry, body in _members(artifact):
            _put(artifact, entry, body, root)


def verify(artifact: Artifact) -> None:
    """Every byte against the list; nothing is written. Raises IntegrityError."""
    for entry, body in _members(artifact):
        _copy(artifact, entry, body, None)


def _members(artifact: Artifact) -> Iterator[tuple[Entry, IO[bytes]]]:
    path = artifact.folder / TAR
    try:
        with _open(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            left = iter(artifact.entries)
            for member in tar:
                entry = next(left, None)
                if entry is None or member.name != entry.path or not member.isreg() or member.size != entry.size:
                    raise _damaged(path, f"holds {member.name!r} of {member.size} bytes, the list {_said(entry)}")
                body = tar.extractfile(member)
                if body is None:
                    raise _damaged(path, f"{member.name!r} cannot be read")
                yield entry, body
            if entry := next(left, None):
                raise _damaged(path, f"ends before {_said(entry)}")
    except FileNotFoundError as exc:
        raise _damaged(path, "not there") from exc
    except tarfile.TarError as exc:
        raise _damaged(path, f"cannot be read: {exc}") from exc


def _put(artifact: Artifact, entry: Entry, body: IO[bytes], root: Path) -> None:
    target = root / entry.path
    make_folder(root, target.parent)
    if _same(target, entry):  # another pod's engine may have it in use, and counts what changes
        _copy(artifact, entry, body, None)
        return
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as out:
            _copy(artifact, entry, body, out)
        Path(name).chmod(0o775 if target.suffix in ("", ".so") else 0o664)  # group 0: any uid of a restricted cluster
        if entry.mtime_ns:
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns))
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def make_folder(root: Path, folder: Path) -> None:
    """`folder` below the folder `root`, for every user of group 0. Raises ConfigError for a link on the way, and OSError."""
    at = root
    for part in folder.relative_to(root).parts:
        at /= part
        try:
            at.mkdir()
            at.chmod(0o775)
        except FileExistsError:
            if at.is_symlink():
                hint = "put a folder in its place, or mount one there"
                raise ConfigError(f"{at}: a link, which may lead out of the cache root", hint=hint) from None


def _same(target: Path, entry: Entry) -> bool:
    if not _regular(target):
        return False
    found = target.lstat()
    if found.st_size != entry.size or (entry.mtime_ns and found.st_mtime_ns != entry.mtime_ns):
        return False
    try:
        with _open(target) as file:
            digest = hashlib.sha256()  # hashlib.file_digest is Python 3.11's
            while piece := file.read(WINDOW):
                digest.update(piece)
            return digest.hexdigest() == entry.sha256
    except (OSError, BuilderError):
        return False


def _copy(artifact: Artifact, entry: Entry, body: IO[bytes], out: IO[bytes] | None) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        while piece := body.read(WINDOW):
            digest.update(piece)
            size += len(piece)
            if out:
                out.write(piece)
    except tarfile.TarError as exc:
        raise _damaged(artifact.folder / TAR, f"{entry.path}: {exc}") from exc
    if size != entry.size or digest.hexdigest() != entry.sha256:
        raise _damaged(artifact.folder / TAR, f"{entry.path}: sha256 {digest.hexdigest()}, expected {entry.sha256}")


def _add(tar: tarfile.TarFile, name: str, path: Path, root: Path) -> Entry:
    try:
        safe_path(name)
        name.encode()
    except (ValueError, UnicodeError) as exc:
        raise ConfigError(f"{path}: {exc}", hint="remove it from the cache, and capture again") from exc
    body, before = _stable(path)
    info = tarfile.TarInfo(name)
    kept = before.st_mtime_ns if _has_ninja(path.parent, root) else 0
    info.size, info.mode, info.mtime = before.st_size, 0o644, 0
    with body:
        hashing = _Hashing(body)
        try:
            tar.addfile(info, hashing)
        except OSError as exc:
            raise _changed(path) from exc
        after = os.fstat(body.fileno())
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise _changed(path)
    return Entry(name, before.st_size, hashing.digest.hexdigest(), kept)


class _Hashing(io.RawIOBase):
    """A file that is digested while it is read."""

    def __init__(self, body: IO[bytes]) -> None:
        self.body, self.digest = body, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self.body.read(size)
        self.digest.update(piece)
        return piece


def _stable(path: Path) -> tuple[IO[bytes], os.stat_result]:
    try:
        with readable(path):
            body = path.open("rb")
    except FileNotFoundError as exc:
        raise _changed(path) from exc
    return body, os.fstat(body.fileno())


def _changed(path: Path) -> IntegrityError:
    hint = "let the server finish its warm-up, or stop it, and capture again"
    return IntegrityError(f"{path}: changed while it was read", hint=hint, where={"file": str(path)})


def _has_ninja(folder: Path, root: Path) -> bool:
    """Whether the folder, or one above it below the root, is one that ninja builds in."""
    return any((at / NINJA).exists() for at in (folder, *folder.parents) if at.is_relative_to(root) and at != root)


def _left_out(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def _regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _open(path: Path, flags: int = 0) -> IO[bytes]:
    """The regular file at `path`; a FIFO is not waited for. Raises FileNotFoundError, IntegrityError, CapabilityError."""
    try:
        with readable(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    except BuilderError as exc:
        if path.is_symlink() and flags & os.O_NOFOLLOW:
            raise _irregular(path) from exc
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _irregular(path)
    return os.fdopen(fd, "rb")


def _irregular(path: Path) -> IntegrityError:
    return IntegrityError(f"{path}: not a regular file", hint=CAPTURE_AGAIN, where={"file": str(path)})


def _read(path: Path, limit: int, flags: int = 0) -> bytes:
    with _open(path, flags) as file:
        body = file.read(limit + 1)
    if len(body) > limit:
        raise IntegrityError(f"{path}: larger than {limit} bytes", hint=CAPTURE_AGAIN, where={"file": str(path)})
    return body


def _said(entry: Entry | None) -> str:
    return f"{entry.path!r} of {entry.size} bytes" if entry else "no more"


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{path}: {what}", hint="fetch the artifact again, or capture it again", where={"file": str(path)})
