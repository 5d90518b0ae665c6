"""What nothing leads to any more, removed from a store.

    refs ──▶ manifests ──▶ chunks        what a ref leads to stays, whatever its age
    versions without a ref               the newest `keep_last` of each name stay, those with a ref counted; others go with
                                         their .sig once they are older than `grace_s`
    chunks that no kept manifest names   go once they are older than `grace_s`

Ages are by the store's clock. Manifests go first, then signatures without a manifest, then chunks: killed at any point, no
manifest is left without its chunks, and the next run goes on. It holds the store's one gc lease, so no push relies on a
chunk meanwhile (weights.lease). A ref or manifest that cannot be read, or is of a newer format, stops it before anything is
deleted. A key that does not look exactly like ours is counted and left.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from builder.engines.base import Engine
from builder.errors import IntegrityError
from builder.format.manifest import MAX_MANIFEST_BYTES, manifest_key
from builder.progress import NoProgress, Progress
from builder.stores.base import Entry, Reader, Store
from builder.transfer.checksum import sha256_hex
from builder.transfer.manifests import read_manifest
from builder.weights import refs
from builder.weights.lease import Held, hold
from builder.weights.work import each

GRACE_S = 24 * 3600.0
KEEP_LAST = 3
_MANIFEST = re.compile(r"manifests/sha256/([0-9a-f]{64})\Z")
_SIGNATURE = re.compile(r"manifests/sha256/([0-9a-f]{64})\.sig\Z")
_CHUNK = re.compile(r"chunks/sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})\Z")


@dataclass(frozen=True)
class Gone:
    """A version that goes. name: the model's, or "" where the manifest is damaged.  modified: epoch seconds."""

    digest: str
    name: str
    modified: float


@dataclass(frozen=True)
class GcReport:
    """What was deleted, or with dry_run would be.

    manifests: the versions that no ref leads to.  signatures, chunks: objects, bytes: all of theirs.  kept_*: what stays
    because something leads to it.  young_*: what nothing leads to and is younger than grace_s.  foreign: objects below
    chunks/ and manifests/ that are not ours.
    """

    store: str
    manifests: tuple[Gone, ...]
    signatures: int
    chunks: int
    bytes: int
    kept_manifests: int
    kept_chunks: int
    kept_bytes: int
    young_manifests: int
    young_chunks: int
    young_bytes: int
    foreign: int
    grace_s: float
    keep_last: int
    seconds: float
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "manifests": [vars(m) for m in self.manifests]}


@dataclass(frozen=True)
class _Version:
    """What of a manifest is kept in memory. order: sha256 of its chunks."""

    name: str
    order: tuple[str, ...]


@dataclass
class _Found:
    """One pass over the store, sorted into what goes, what is too young, and what stays.

    before: epoch seconds; what was written later is too young.  objects: those of `manifests`, by key.
    """

    before: float
    manifests: list[Gone] = field(default_factory=list)
    objects: dict[str, Entry] = field(default_factory=dict)
    signatures: list[Entry] = field(default_factory=list)
    chunks: list[Entry] = field(default_factory=list)
    young: list[Entry] = field(default_factory=list)
    young_manifests: int = 0
    kept_manifests: int = 0
    kept_chunks: int = 0
    kept_bytes: int = 0
    foreign: int = 0


def gc(
    store: Store,
    *,
    engine: Engine,
    grace_s: float = GRACE_S,
    keep_last: int = KEEP_LAST,
    wait_s: float | None = None,
    dry_run: bool = True,
    progress: Progress | None = None,
) -> GcReport:
    """Delete what nothing leads to; with dry_run only say what that is, without a lease, ages by this machine's clock.

    grace_s: what is younger stays: a tool without leases, or a frozen process, may be about to need it.
    keep_last: versions of each name that stay without a ref, for servers that start by digest.  wait_s: for pushes to end.
    Raises IntegrityError, before anything is deleted, where a ref or manifest cannot be understood; RemoteError where a
    push goes on for longer than wait_s, or the store fails.
    """
    start = time.monotonic()
    progress = progress or NoProgress()
    if dry_run:
        found = _find(store, time.time(), grace_s, keep_last, engine, progress)
    else:
        _named(store)  # a mistyped folder, or a damaged ref, ends it before a lease is written
        with hold(store, "gc", progress=progress, wait_s=wait_s) as held:
            found = _find(store, held.now, grace_s, keep_last, engine, progress)
            _delete(store, held, found, engine, progress)
    return GcReport(
        store=store.url,
        manifests=tuple(found.manifests),
        signatures=len(found.signatures),
        chunks=len(found.chunks),
        bytes=sum(e.size for part in (found.objects.values(), found.signatures, found.chunks) for e in part),
        kept_manifests=found.kept_manifests,
        kept_chunks=found.kept_chunks,
        kept_bytes=found.kept_bytes,
        young_manifests=found.young_manifests,
        young_chunks=len(found.young),
        young_bytes=sum(e.size for e in found.young),
        foreign=found.foreign,
        grace_s=grace_s,
        keep_last=keep_last,
        seconds=time.monotonic() - start,
        dry_run=dry_run,
    )


def _find(store: Store, now: float, grace_s: float, keep_last: int, engine: Engine, progress: Progress) -> _Found:
    found = _Found(before=now - grace_s)
    named = _named(store)
    entries = {e.key: e for e in store.entries("manifests/")}
    needed = _manifests(found, entries, named, keep_last, _read_all(store, entries, named, engine, progress))
    for entry in entries.values():
        if match := _SIGNATURE.match(entry.key):
            _signature(entry, entries.get(f"manifests/sha256/{match[1]}"), found)
        elif not _MANIFEST.match(entry.key):
            found.foreign += 1
    task = progress.add("gc: list chunks", unit="chunks")
    for entry in store.entries("chunks/"):
        _chunk(entry, needed, found)
        progress.advance(task, 1)
    progress.done(task, f"{found.kept_chunks} stay, {len(found.chunks)} go")
    return found


def _named(store: Store) -> set[str]:
    """Digests that refs lead to."""
    named = set()
    for ref in refs.refs(store):
        if not ref.digest:
            raise _stop(f"{store.url}/refs/{ref.ref}: not a ref that this builder understands")
        named.add(ref.digest)
    return named


def _read_all(
    store: Store, entries: dict[str, Entry], named: set[str], engine: Engine, progress: Progress
) -> dict[str, _Version | None]:
    """Every manifest by its digest; None for a damaged one that no ref leads to."""
    digests = [f"sha256:{match[1]}" for key in entries if (match := _MANIFEST.match(key))]
    if missing := named.difference(digests):
        raise _stop(f"{store.url}: a ref leads to the manifest {min(missing)}, which is not there")
    task = progress.add("gc: read manifests", len(digests), "manifests")
    manifests: dict[str, _Version | None] = {}
    for digest, version in each(engine, lambda digest: _read(store, digest, must=digest in named), digests):
        manifests[digest] = version
        progress.advance(task, 1)
    progress.done(task)
    return manifests


def _read(store: Store, digest: str, *, must: bool) -> _Version | None:
    try:
        manifest = read_manifest(Reader(store), digest)
        return _Version(manifest.name, manifest.order)
    except IntegrityError as exc:
        body = store.get(manifest_key(digest), MAX_MANIFEST_BYTES)
        if must or (body is not None and f"sha256:{sha256_hex(body)}" == digest):  # whole, so of another kind than we know
            raise _stop(exc.message, exc) from exc
        return None


def _manifests(
    found: _Found, entries: dict[str, Entry], named: set[str], keep_last: int, manifests: dict[str, _Version | None]
) -> set[str]:
    """Sort every manifest; returns the sha256 of the chunks that those which stay need."""
    needed: set[str] = set()
    seen: Counter[str] = Counter()
    at = {digest: entries[manifest_key(digest)] for digest in manifests}
    for digest in sorted(manifests, key=lambda digest: (-at[digest].modified, digest)):  # newest first
        version, entry = manifests[digest], at[digest]
        name = version.name if version else ""
        seen[name] += 1
        stays = digest in named or (version is not None and seen[name] <= keep_last)
        if not stays and entry.modified <= found.before:
            found.manifests.append(Gone(digest, name, entry.modified))
            found.objects[entry.key] = entry
            continue
        found.kept_manifests += stays
        found.young_manifests += not stays
        needed.update(version.order if version else ())
    return needed


def _signature(entry: Entry, manifest: Entry | None, found: _Found) -> None:
    """It stays as long as its manifest; alone, as long as the grace."""
    if manifest.key in found.objects if manifest else entry.modified <= found.before:
        found.signatures.append(entry)


def _chunk(entry: Entry, needed: set[str], found: _Found) -> None:
    match = _CHUNK.match(entry.key)
    if match is None:
        found.foreign += 1
    elif match[2] in needed:
        found.kept_chunks += 1
        found.kept_bytes += entry.size
    elif entry.modified > found.before:
        found.young.append(entry)
    else:
        found.chunks.append(entry)


def _delete(store: Store, held: Held, found: _Found, engine: Engine, progress: Progress) -> None:
    """Manifests, then signatures, then chunks; each kind only after all of the one before."""
    for what, entries in (
        ("manifests", list(found.objects.values())),
        ("signatures", found.signatures),
        ("chunks", found.chunks),
    ):
        if entries:
            _delete_all(store, held, what, entries, engine, progress)


def _delete_all(store: Store, held: Held, what: str, entries: list[Entry], engine: Engine, progress: Progress) -> None:
    task = progress.add(f"gc: delete {what}", len(entries), what)

    def delete(entry: Entry) -> None:
        held.require()
        store.delete(entry.key)

    for _ in each(engine, delete, entries):
        progress.advance(task, 1)
    progress.done(task)


def _stop(what: str, cause: IntegrityError | None = None) -> IntegrityError:
    hint = (cause.hint if cause else "") or "push that model again, or delete its ref"
    return IntegrityError(f"{what}; nothing was deleted", hint=hint, where=cause.where if cause else {})
