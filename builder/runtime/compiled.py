"""Compile caches at a start: whether a captured one is for this stack, and whether the engine compiled after all.

    install   the captured cache, if it is for this fingerprint, into the cache root; the fingerprint beside it
    fresh     afterwards: what the engine compiled all the same

A cache for another stack is not put where an engine would look: engines key their caches, but not on all of what the code was
compiled for. Inductor compiles C++ for this very CPU (-march=native, torch 2.13.0, _inductor/cpp_builder.py) and keys on the
vector instructions alone; a file from another CPU can end the process with SIGILL.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
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
SHOWN = 6


@dataclass(frozen=True)
class Installed:
    """What a start did about captured caches.

    result: hit; kept (what an earlier start of this stack left in the root); differs (what is there is for another stack);
    none (nothing is there); off.  key: of this stack.
    files, bytes: put into the root.  before: paths in the root when the engine starts.  reason: one sentence, for differs.
    env: variables for the engine, where the root cannot be written; root is then the folder that they lead to.
    """

    root: Path | None = None
    result: str = "off"
    key: str = ""
    files: int = 0
    bytes: int = 0
    reason: str = ""
    origin: str = ""
    before: frozenset[str] = field(default_factory=frozenset, repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        names = ("result", "key", "files", "bytes", "reason", "origin")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Fresh:
    """What was compiled after `before`. folders: files by the engine's folder in the root."""

    files: int
    bytes: int
    folders: Mapping[str, int]

    def __str__(self) -> str:
        named = ", ".join(f"{name} {count}" for name, count in self.folders.items())
        return f"{self.files} new files, {self.bytes / 2**20:.1f} MiB ({named})"


def install(settings: Settings, mine: Fingerprint) -> Installed:
    """The captured cache for this stack in the cache root, where there is one.

    Raises IntegrityError for a damaged artifact; CapabilityError, with BUILDER_COMPILE_CACHE=require, if none is for this stack
    or the root cannot be written; RemoteError, with it, if the store is silent. Else those are told, and the start goes on.
    """
    root, must = settings.compile_cache_root, settings.compile_cache == "require"
    if root is None or settings.compile_cache == "off":
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
    if must and (got.reason or not (got.artifact or got.kept)):
        raise CapabilityError(
            f"BUILDER_COMPILE_CACHE=require, but {got.reason or f'no captured cache is here: {_places(settings)}'}",
            hint="capture one on this stack: builder cache capture; or set BUILDER_COMPILE_CACHE=use to start without",
        )
    if got.reason:
        log(STEP, f"{got.reason}; the engine compiles" if got.artifact is None else got.reason)
    before = frozenset(compiled.counted(root))
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
        for at, _, _ in os.walk(root):
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
    folder, root = Path(tempfile.mkdtemp(prefix="builder-compiled-")), str(settings.compile_cache_root)
    reason = f"the cache root cannot be written: {closed}; the engine compiles to {folder}"
    log(STEP, reason)
    env = {name: f"{folder}{value[len(root) :]}" for name, value in settings.compile_paths.items()}
    return Installed(folder, "differs", mine.key, reason=reason, env=env)


def fresh(installed: Installed) -> Fresh | None:
    """What lies in the cache root now, and did not when the engine started; None where no root is set."""
    if installed.root is None:
        return None
    new = {name: path for name, path in compiled.counted(installed.root).items() if name not in installed.before}
    folders: dict[str, int] = {}
    for name in sorted(new):
        top = name.split("/")[0]
        folders[top] = folders.get(top, 0) + 1
    return Fresh(len(new), sum(_size(path) for path in new.values()), folders)


class _Got(NamedTuple):
    """artifact: the one for this stack, from `origin`.  reason: what was found that is not for it; "" for nothing.

    kept: the root holds what an earlier start of this very stack compiled.
    """

    artifact: compiled.Artifact | None
    reason: str = ""
    origin: str = ""
    kept: bool = False


def _place(settings: Settings, mine: Fingerprint, root: Path) -> _Got:
    """The fingerprint in the root, and the captured cache that is for it."""
    (left, kept), fetched = _left(root, mine), root / FETCHED
    (root / IN_ROOT).parent.mkdir(parents=True, exist_ok=True)
    write_synced(root / IN_ROOT, mine.to_bytes())
    got = _find(settings, mine, fetched)
    if got.artifact:
        compiled.unpack(got.artifact, root)
        shutil.rmtree(fetched, ignore_errors=True)  # else it takes its space twice
    return got._replace(reason=left or ("" if kept else got.reason), kept=kept)


def _left(root: Path, mine: Fingerprint) -> tuple[str, bool]:
    """Why what an earlier start left in the root (a volume that outlives it) is not for this stack, or ""; whether it is."""
    try:
        theirs = compiled.captured_fingerprint(root)
    except BuilderError:  # an empty root, or one that nobody can vouch for: the engine's own keys decide
        return "", False
    reason = _refusal(str(root), theirs, mine)
    return reason, not reason and bool(compiled.counted(root))


def _find(settings: Settings, mine: Fingerprint, fetched: Path) -> _Got:
    folder, reason = settings.compile_cache_dir, ""
    if (folder / FINGERPRINT).exists():
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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
