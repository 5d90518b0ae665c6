"""Compile caches at a start: whether a captured one is for this stack, and whether the engine compiled after all.

    install   the captured cache, if it is for this fingerprint, into the cache root; the fingerprint beside it
    fresh     afterwards: what the engine compiled all the same

A cache for another stack is not put where an engine would look: engines key their caches, but not on all of what the code was
compiled for. Inductor compiles C++ for this very CPU (-march=native, torch 2.13.0, _inductor/cpp_builder.py) and keys on the
vector instructions alone; a file from another CPU can end the process with SIGILL.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from builder.errors import BuilderError, CapabilityError, IntegrityError
from builder.format.compiled import FINGERPRINT, IN_ROOT, Fingerprint, parse_fingerprint
from builder.runtime.record import Lines, log
from builder.transfer import compiled
from builder.transfer.claim import disk_errors, write_synced

if TYPE_CHECKING:
    from builder.runtime.settings import Settings
    from builder.transfer.source import Source

STEP = "compile-cache"
FETCHED = ".builder/fetched"
LOCK = ".builder/lock"
FOREIGN = ".builder/foreign-"
SHOWN = 6


@dataclass(frozen=True)
class Installed:
    """What a start did about captured caches.

    result: hit; kept (what an earlier start of this stack left in the root); differs (what is there is for another stack);
    none (nothing is there); off.  key: of this stack.
    files, bytes: put into the root.  before: size and time of each file in the root when the engine starts, by path.
    reason: one sentence, for differs.
    env: variables for the engine, where the root cannot be written; root is then the folder that they lead to.
    """

    root: Path | None = None
    result: str = "off"
    key: str = ""
    files: int = 0
    bytes: int = 0
    reason: str = ""
    origin: str = ""
    before: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        names = ("result", "key", "files", "bytes", "reason", "origin")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Fresh:
    """What was compiled after `before`, new or in the place of another. folders: files by the engine's folder in the root."""

    files: int
    bytes: int
    folders: Mapping[str, int]

    def __str__(self) -> str:
        named = ", ".join(f"{name} {count}" for name, count in self.folders.items())
        return f"{self.files} new files, {self.bytes / 2**20:.1f} MiB ({named})"


def install(settings: Settings, mine: Fingerprint) -> Installed:
    """The captured cache for this stack in the cache root, where there is one.

    Raises IntegrityError for a damaged artifact; CapabilityError, with BUILDER_COMPILE_CACHE=require, if none is for this stack
    or the root cannot be written, or the image has none; RemoteError, with it, if the store is silent.
    Else those are told, and the start goes on.
    """
    root, must = settings.compile_cache_root, settings.compile_cache == "require"
    if settings.compile_cache == "off":
        return Installed()
    if root is None:
        if must:
            hint = "set BUILDER_COMPILE_CACHE=use, or build an image whose engine compiles"
            raise CapabilityError("BUILDER_COMPILE_CACHE=require, but BUILDER_COMPILE_CACHE_ROOT is not set", hint=hint)
        return Installed()
    if closed := unwritable(root):
        return _elsewhere(settings, mine, closed)
    try:
        with disk_errors(root):
            got = _place(settings, mine, root)
    except IntegrityError:
        raise
    except BuilderError as exc:  # an engine without its cache is slow, and works
        if must:
            raise
        got = _Got(None, exc.message)
    if got.reason:
        log(STEP, f"{got.reason}; the engine compiles" if got.artifact is None else got.reason)
    before = {name: _stamp(path) for name, path in compiled.counted(root).items()}
    if got.artifact is None:
        result = "differs" if got.reason else "kept" if got.kept else "none"
        return Installed(root, result, mine.key, reason=got.reason, before=before)
    files, size = len(got.artifact.entries), got.artifact.bytes
    log(STEP, f"{mine.short}: {files} files, {size / 2**20:.1f} MiB from {got.origin}")
    return Installed(root, "hit", mine.key, files, size, got.reason, got.origin, before)


def unwritable(root: Path) -> str:
    """Why the engine could not write to the root, or to a folder in it that another user left; "" if it can."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for at, folders, _ in compiled.walk(root):
            if at == str((root / IN_ROOT).parent):
                folders.clear()  # what is put aside there may be another user's
            if not os.access(at, os.W_OK | os.X_OK):
                flags = os.statvfs(at).f_flag
                return f"{at}: " + ("read-only file system" if flags & os.ST_RDONLY else f"not writable by user {os.getuid()}")
    except OSError as exc:
        return f"{exc.filename or root}: {exc.strerror}"
    return ""


def _elsewhere(settings: Settings, mine: Fingerprint, closed: str) -> Installed:
    """A start that compiles to a temporary folder: Inductor fails, and does not compile in memory, where it cannot write."""
    if settings.compile_cache == "require":
        hint = "mount a writable volume there (fsGroup 0, or emptyDir)"
        raise CapabilityError(f"BUILDER_COMPILE_CACHE=require, but the cache root cannot be written: {closed}", hint=hint)
    try:
        folder, root = Path(tempfile.mkdtemp(prefix="builder-compiled-")), str(settings.compile_cache_root)
    except OSError as exc:
        reason = f"the cache root cannot be written: {closed}; and no temporary folder can be made: {exc.strerror}"
        log(STEP, reason)
        return Installed(None, "differs", mine.key, reason=reason)
    reason = f"the cache root cannot be written: {closed}; the engine compiles to {folder}"
    log(STEP, reason)
    env = {name: f"{folder}{value[len(root) :]}" for name, value in settings.compile_paths.items()}
    return Installed(folder, "differs", mine.key, reason=reason, env=env)


def fresh(installed: Installed) -> Fresh | None:
    """What is in the cache root now, and was not, or not so, when the engine started; None where there is none to read.

    A log that grew is no compiled work: FlashInfer writes its own there.
    """
    if installed.root is None:
        return None
    try:
        now = compiled.counted(installed.root)
    except BuilderError as exc:
        log(STEP, exc.message)
        return None
    was = installed.before
    new = {n: p for n, p in now.items() if n not in was or (_stamp(p) != was[n] and not n.endswith(".log"))}
    folders: dict[str, int] = {}
    for name in sorted(new):
        top = name.split("/")[0]
        folders[top] = folders.get(top, 0) + 1
    return Fresh(len(new), sum(_stamp(path)[0] for path in new.values()), folders)


class _Got(NamedTuple):
    """artifact: the one for this stack, from `origin`.  reason: what was found that is not for it; "" for nothing.

    kept: the root holds what an earlier start of this very stack compiled.
    """

    artifact: compiled.Artifact | None
    reason: str = ""
    origin: str = ""
    kept: bool = False


def _place(settings: Settings, mine: Fingerprint, root: Path) -> _Got:
    """The fingerprint in the root, and the captured cache that is for it; nothing else's files.

    Raises CapabilityError if there must be one and is none; the root is then as it was, so the next start finds the same.
    """
    compiled.make_folder(root, (root / IN_ROOT).parent)
    with _alone(root):
        theirs, fetched = _left(root), root / FETCHED
        left = _refusal(str(root), theirs, mine) if theirs else ""
        kept = bool(theirs and not left and compiled.counted(root))
        got = _find(settings, mine, fetched)
        got = got._replace(reason=left or ("" if kept else got.reason), kept=kept)
        if settings.compile_cache == "require" and (got.reason or not (got.artifact or kept)):
            raise CapabilityError(
                f"BUILDER_COMPILE_CACHE=require, but {got.reason or f'no captured cache is here: {_places(settings)}'}",
                hint="capture one on this stack: builder cache capture; or set BUILDER_COMPILE_CACHE=use to start without",
            )
        if theirs and left:
            _swap(root, theirs, mine)
        _write(root, mine)
        if got.artifact:
            compiled.unpack(got.artifact, root)
            shutil.rmtree(fetched, ignore_errors=True)  # else it takes its space twice
        return got


def _left(root: Path) -> Fingerprint | None:
    """Of what an earlier start left in the root, a volume that outlives it."""
    try:
        return compiled.captured_fingerprint(root)
    except BuilderError:  # an empty root, or one that nobody can vouch for: the engine's own keys decide
        return None


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One start at a time in a root that pods share; the kernel drops the lock of one that dies."""
    fd = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o664)
    try:
        with contextlib.suppress(OSError):  # another user's; or a file system without locks
            os.fchmod(fd, 0o664)
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _swap(root: Path, theirs: Fingerprint, mine: Fingerprint) -> None:
    """Another stack's files out of the engine's way, and back what was put aside when this stack was the other one."""
    away, back = (root / f"{FOREIGN}{stack.short}" for stack in (theirs, mine))
    compiled.make_folder(root, away)
    _move(root, away)
    if back.is_dir():
        _move(back, root)
        back.rmdir()


def _move(source: Path, target: Path) -> None:
    for path in list(source.iterdir()):
        if path.name in ((source / IN_ROOT).parent.name, compiled.LOST):
            continue
        if (target / path.name).is_dir() and not (target / path.name).is_symlink():
            shutil.rmtree(target / path.name)  # of a start that was killed here
        path.rename(target / path.name)


def _write(root: Path, mine: Fingerprint) -> None:
    """The fingerprint, whole at any moment: others may read it."""
    handle, name = tempfile.mkstemp(dir=(root / IN_ROOT).parent, prefix=".tmp-")
    os.close(handle)
    write_synced(Path(name), mine.to_bytes())
    Path(name).replace(root / IN_ROOT)


def _find(settings: Settings, mine: Fingerprint, fetched: Path) -> _Got:
    folder, reason = settings.compile_cache_dir, ""
    if os.path.lexists(folder / FINGERPRINT):
        artifact = compiled.load(folder)
        reason = _refusal(str(folder), artifact.fingerprint, mine)
        if not reason:
            return _Got(artifact, "", str(folder))
    if settings.compile_cache_store:
        got = _fetch(settings, mine, fetched)
        return got if got.artifact or got.reason else _Got(None, reason)
    return _Got(None, reason)


def _fetch(settings: Settings, mine: Fingerprint, fetched: Path) -> _Got:
    from builder.transfer.manifests import read_manifest
    from builder.transfer.restore import restore
    from builder.transfer.retry import Policy, retrying
    from builder.transfer.source import open_source

    url, endpoint, region = settings.compile_cache_store, settings.endpoint_url or None, settings.region or None
    source = retrying(open_source(url, endpoint_url=endpoint, region=region), Policy(tries=2))
    name = settings.compile_cache_name
    ref = f"{name}@{mine.short}"
    if _absent(source, ref):
        return _Got(None, _latest(source, name, mine))
    manifest = read_manifest(source, ref)
    folder = fetched / manifest.digest.removeprefix("sha256:")
    folder.parent.mkdir(parents=True, exist_ok=True)
    restore(manifest, source, folder, concurrency=settings.concurrency or None, progress=Lines(STEP))
    artifact = compiled.load(folder)
    if artifact.fingerprint.key != mine.key:
        raise IntegrityError(f"{source.url}: {ref} is of {artifact.fingerprint.short}", hint="capture it again")
    return _Got(artifact, "", f"{source.url} {ref}")


def _absent(source: Source, ref: str) -> bool:
    from builder.format.manifest import ref_key
    from builder.transfer.manifests import REF_BYTES

    return source.read(ref_key(ref), limit=REF_BYTES) is None


def _latest(source: Source, name: str, mine: Fingerprint) -> str:
    """Why the cache that was captured last for this name is not for this stack; "" where there is none."""
    from builder.transfer.manifests import read_manifest

    if _absent(source, name):
        return ""
    at = f"{source.url}: {name}"
    body = read_manifest(source, name).small.get(FINGERPRINT)
    return _refusal(at, parse_fingerprint(body, at), mine) if body else ""


def _refusal(at: str, theirs: Fingerprint, mine: Fingerprint) -> str:
    wrong = theirs.differences(mine)
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return f"the cache in {at} is for another stack: {'; '.join(wrong[:SHOWN])}{more}" if wrong else ""


def _places(settings: Settings) -> str:
    return ", ".join([str(settings.compile_cache_dir), *filter(None, [settings.compile_cache_store])])


def _stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns; zeros for a file that vanished."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
