"""Find the model's folder on this node, or fetch it: one answer for `serve`, `prefetch` and init containers.

    1. A digest is asked for, or the store says which digest the name has now.
    2. The models roots are searched in order for a folder that is complete for that digest: used as it is.
    3. Otherwise it is restored from the store into the first root that can be written; other pods wait on its lock.

Without a store, or when it cannot be reached, the only complete local model of that name is used; several are an error,
because a name alone does not say which is newer. A root may itself be one model (`weights pull --to DIR`).

What is found is leased (transfer/lease.py): with BUILDER_CACHE_SIZE, no other pod of the node evicts it until the lease is
released. Between an init container's end and the server's start nobody holds it; being the last used, it goes last, and
if it went, the server fetches it again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.format.manifest import Manifest, is_digest, parse
from builder.format.volume import MANIFEST, marker_digest, model_dir
from builder.runtime.record import Lines, log
from builder.runtime.settings import Settings
from builder.transfer.lease import Lease, hold
from builder.transfer.source import Source


@dataclass(frozen=True)
class Found:
    """A model that is complete on this node.

    origin: the folder it was found in, or the store it came from.  first_layers_s, seconds: since the search began;
    first_layers_s is None when the model's tensors name no layers.  lease: release it when the model is no longer used.
    """

    folder: Path
    manifest: Manifest
    digest: str
    origin: str
    fetched_bytes: int
    reused_bytes: int
    first_layers_s: float | None
    seconds: float
    lease: Lease = field(default_factory=Lease, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.manifest.name,
            "digest": self.digest,
            "folder": str(self.folder),
            "origin": self.origin,
            "size": self.manifest.size,
            "fetched_bytes": self.fetched_bytes,
            "reused_bytes": self.reused_bytes,
            "first_layers_s": None if self.first_layers_s is None else round(self.first_layers_s, 6),
            "seconds": round(self.seconds, 6),
        }


@dataclass(frozen=True)
class Local:
    """A folder with a valid marker and the manifest the marker names."""

    folder: Path
    digest: str
    manifest: Manifest

    def answers(self, ref: str) -> bool:
        """True if `ref` (name, name@revision, digest or "") stands for this model."""
        name, at, revision = ref.partition("@")
        return ref in ("", self.digest) or (name == self.manifest.name and (not at or revision == self.manifest.revision))


def find(settings: Settings) -> Found:
    """The model that `settings` ask for, complete and checked.

    Raises ConfigError if nothing says which model, or several could be meant; IntegrityError if what is there is damaged
    and no store can replace it; CapabilityError if no root can be written; RemoteError if the store is needed and silent.
    """
    started = time.monotonic()
    source, digest = _ask(settings)
    local, lease = _leased(settings, digest)
    if local is None:
        if source is None:
            raise _nothing(settings)
        return _fetch(settings, source, digest, started)
    try:
        fetched = _ensure(settings, local, source)
    except BaseException:
        lease.release()
        raise
    seconds = time.monotonic() - started
    return Found(local.folder, local.manifest, local.digest, str(local.folder), fetched, local.manifest.size - fetched,
                 seconds, seconds, lease)  # fmt: skip


def models(root: Path) -> Iterator[Local]:
    """Every complete model under `root`, and `root` itself if it is one; by folder name. Damaged manifests are an error."""
    try:
        folders = [root, *sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as exc:
        raise CapabilityError(f"{root}: {exc.strerror}", hint="mount the models root readable by this user") from exc
    for folder in folders:
        digest = marker_digest(folder)
        if digest:
            path = folder / MANIFEST
            try:
                body = path.read_bytes()
            except OSError as exc:
                if marker_digest(folder) != digest:  # evicted meanwhile
                    continue
                raise IntegrityError(f"{path}: {exc.strerror}", hint=f"remove {folder} and start again") from exc
            yield Local(folder, digest, parse(body, at=str(path), digest=digest))


def _ask(settings: Settings) -> tuple[Source | None, str]:
    """The store, if it answers, and the digest that it gives the model.

    When it does not, the only local model of that name will do, and the store is left alone; without one, it is asked
    again with all the patience that transfer has. No store: None, and the name as it was given.
    """
    if not settings.store:
        return None, settings.model
    from builder.transfer.manifests import resolve
    from builder.transfer.retry import Policy, retrying
    from builder.transfer.source import open_source

    def store() -> Source:
        return open_source(settings.store, endpoint_url=settings.endpoint_url or None, region=settings.region or None)

    try:
        source = store()
        return source, resolve(retrying(source, Policy(tries=2)), settings.model)
    except RemoteError as exc:
        local = _only(settings, settings.model)
        if local is None:
            source = store()
            return source, resolve(source, settings.model)
        log("weights", f"{exc.message}; using {local.digest}, the only local version of {local.manifest.name}")
        return None, local.digest


def _leased(settings: Settings, ref: str) -> tuple[Local | None, Lease]:
    """The local model for `ref`, and the lease on it: seen, locked, and still there."""
    while True:
        local = _local(settings, ref)
        if local is None:
            return None, Lease()
        lease = hold(local.folder)
        if marker_digest(local.folder) == local.digest:
            return local, lease
        lease.release()


def _local(settings: Settings, ref: str) -> Local | None:
    """The local model for `ref`. A digest needs no search: its folder has its name."""
    if not is_digest(ref):
        return _only(settings, ref)
    for root in settings.models_root:
        for folder in (model_dir(root, ref), root):
            if marker_digest(folder) == ref:
                return next((local for local in models(folder) if local.folder == folder), None)
    return None


def _only(settings: Settings, ref: str) -> Local | None:
    found = {m.digest: m for root in reversed(settings.models_root) for m in models(root) if m.answers(ref)}
    if len(found) > 1:
        raise ConfigError(
            f"{len(found)} local models answer {ref!r}: {', '.join(sorted(found))}",
            hint="set BUILDER_MODEL to one of these digests",
        )
    return next(iter(found.values()), None)


def _ensure(settings: Settings, local: Local, source: Source | None) -> int:
    """Bytes fetched again so that `local` is whole: 0 in the usual case.

    Compares sizes, or every byte with BUILDER_VERIFY=full.  Raises IntegrityError if it is damaged and not repairable.
    """
    if settings.verify_full:
        from builder.transfer.check import check_folder

        bad = [str(fault) for fault in check_folder(local.folder, workers=settings.concurrency or 8)]
    else:
        bad = [f"{f.path}: {said}" for f in local.manifest.files if (said := _size_fault(local.folder / f.path, f.size))]
    if not bad:
        return 0
    shown = "".join(f"\n  {line}" for line in bad[:20])
    if source is None or not os.access(local.folder, os.W_OK):
        raise IntegrityError(
            f"{local.folder}: marked complete, but {len(bad)} faults:{shown}",
            hint="remove the folder, or set BUILDER_STORE and mount the models root writable so that it can be repaired",
            where={"file": str(local.folder)},
        )
    log("weights", f"{local.folder}: {len(bad)} faults, repairing from {source.url}:{shown}")
    from builder.transfer.check import repair_folder

    return repair_folder(local.folder, source, workers=settings.concurrency or 8, progress=Lines("weights")).fetched_bytes


def _size_fault(path: Path, size: int) -> str:
    try:
        found = path.stat().st_size
    except OSError as exc:
        return exc.strerror or str(exc)
    return "" if found == size else f"{found} bytes, expected {size}"


def _fetch(settings: Settings, source: Source, digest: str, started: float) -> Found:
    from builder.transfer.cache import ensure
    from builder.transfer.manifests import read_manifest
    from builder.transfer.restore import RestoreReport, restore

    manifest = read_manifest(source, digest)
    root, progress = _writable(settings.models_root), Lines("weights")

    def fetch(folder: Path) -> RestoreReport:
        return restore(manifest, source, folder, concurrency=settings.concurrency or None, progress=progress)

    before = time.monotonic() - started
    held = ensure(manifest, root, fetch, budget=settings.cache_size, progress=progress)
    done = held.report
    first = None if done.first_layers_s is None else before + done.first_layers_s
    return Found(Path(done.folder), manifest, digest, f"store {source.url}", done.fetched_bytes, done.reused_bytes, first,
                 time.monotonic() - started, held.lease)  # fmt: skip


def _writable(roots: tuple[Path, ...]) -> Path:
    """The first root in which this user can make a folder. Raises CapabilityError that lists why each cannot."""
    why = []
    for root in roots:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            why.append(f"{root}: {exc.strerror}")
            continue
        if os.access(root, os.W_OK | os.X_OK):
            return root
        flags = os.statvfs(root).f_flag
        why.append(f"{root}: " + ("read-only file system" if flags & os.ST_RDONLY else f"not writable by user {os.getuid()}"))
    raise CapabilityError(
        f"the model is not on this node, and no models root can be written: {'; '.join(why)}",
        hint="mount a writable volume there (fsGroup 0, or emptyDir), or seed the node with the model",
    )


def _nothing(settings: Settings) -> BuilderError:
    roots = ", ".join(str(root) for root in settings.models_root)
    if settings.model:
        missing, hint = f"model {settings.model} is not in {roots}", "set BUILDER_STORE, or mount the seeded models root"
    else:
        missing, hint = f"no model is named and none lies in {roots}", "set BUILDER_MODEL and BUILDER_STORE"
    return ConfigError(f"{missing}, and no store is set", hint=hint)
