"""A model from one store into another: only what is missing there moves, and every chunk is hashed on its way.

The order is that of a push: chunks, manifest, signatures, refs. Killed at any point, the other store has chunks only, and the
next run finds them. Both stores are held against a gc meanwhile; the first, where it can be written.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from builder.engines.base import Engine
from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.format.manifest import Chunk, File, Manifest, is_digest, manifest_key
from builder.progress import NoProgress, Progress
from builder.stores.base import Reader, Store, other_size
from builder.stores.readonly import ReadStore
from builder.transfer.checksum import Buffer, crc64nvme_hex, sha256_hex
from builder.transfer.faults import Fault, chunk_fault, failure
from builder.transfer.manifests import read_manifest, resolve
from builder.transfer.retry import RetryingSource, retrying
from builder.weights import refs, sign
from builder.weights.budget import ByteBudget
from builder.weights.lease import hold
from builder.weights.sign import Signatures
from builder.weights.work import each

Place = tuple[File, Chunk]
_REFUSED = (401, 403, 405)  # of a store that may only be read


@dataclass(frozen=True)
class CopyReport:
    """What was copied, or with dry_run would be.

    refs: written at the destination.  chunks: distinct ones; sent and reused (found there) add up to them.
    guarded: whether a gc of the first store was held off, which needs a store that can be written.
    """

    name: str
    digest: str
    store: str
    to_store: str
    refs: tuple[str, ...]
    bytes: int
    chunks: int
    sent_chunks: int
    sent_bytes: int
    reused_chunks: int
    signed: bool
    guarded: bool
    peak_bytes: int
    seconds: float
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "refs": list(self.refs)}


def copy(
    store: Store,
    ref: str,
    to: Store,
    *,
    engine: Engine,
    memory: int,
    tag: str = "",
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> CopyReport:
    """Put the model that `ref` leads to into the store `to`, under the same ref.

    tag: also <name>@<tag> there; needed where `ref` is a digest, since a version without a ref is one for gc.
    memory: bytes of chunks in memory at once.  force: move a tag that leads to another version there.
    Raises IntegrityError where a chunk is damaged in the first store or has another size in the second, all of them
    together; ConfigError for a tag that is taken; RemoteError, CapabilityError where a store fails. Then no ref is written.
    """
    start = time.monotonic()
    progress = progress or NoProgress()
    source = retrying(store.source())
    digest = resolve(source, ref)
    manifest = read_manifest(source, digest)
    names = _names(manifest, ref, tag)
    _require_free(to, names, digest, force)
    with ExitStack() as held:
        guarded = not dry_run and _guard(held, store, progress)
        lease = None if dry_run else held.enter_context(hold(to, "push", progress=progress))
        run = _Copy(source, to, ByteBudget(memory), dry_run)
        run.all(manifest, engine, progress)
        signatures = sign.read_signatures(source, digest)
        if lease:
            lease.require()
            _publish(to, manifest, signatures)
            lease.require()
            for name in names:
                refs.write(to, name, digest)
    return CopyReport(
        name=manifest.name,
        digest=digest,
        store=store.url,
        to_store=to.url,
        refs=names,
        bytes=manifest.size,
        chunks=len(manifest.order),
        sent_chunks=len(run.sent),
        sent_bytes=sum(run.sent),
        reused_chunks=len(manifest.order) - len(run.sent),
        signed=signatures is not None,
        guarded=guarded,
        peak_bytes=run.budget.peak,
        seconds=time.monotonic() - start,
        dry_run=dry_run,
    )


def _names(manifest: Manifest, ref: str, tag: str) -> tuple[str, ...]:
    """The refs to write: `ref` itself, the commit of a hub model beside its bare name, and the tag."""
    if is_digest(ref) and not tag:
        raise ConfigError(f"{ref}: a digest is no name to find it by there", hint="add --tag NAME, or give name@tag")
    name = refs.name_of(ref, manifest.name)
    names = [] if is_digest(ref) else [ref or name]
    if names == [name] and manifest.revision:
        names.append(f"{name}@{manifest.revision}")
    return tuple(dict.fromkeys([*names, *([f"{name}@{tag}"] if tag else [])]))


def _require_free(to: Store, names: tuple[str, ...], digest: str, force: bool) -> None:
    """A bare name moves, as in a push; a tag only with force."""
    for name in names:
        there = refs.read(to, name)  # the first request: a store that cannot be reached fails here
        if "@" in name and there and there.digest != digest and not force:
            raise ConfigError(
                f"{to.url}: {name} is {there.digest or 'damaged'} already, not {digest}", hint="move it with --force"
            )


def _guard(held: ExitStack, store: Store, progress: Progress) -> bool:
    """Hold off a gc of the first store. One that may only be read is copied all the same: each chunk is checked."""
    if isinstance(store, ReadStore):
        return False
    try:
        held.enter_context(hold(store, "push", progress=progress))
    except CapabilityError:
        return False
    except RemoteError as exc:
        if exc.where.get("status") not in _REFUSED:
            raise
        return False
    return True


class _Copy:
    """sent: bytes of each chunk that was missing."""

    def __init__(self, source: RetryingSource, to: Store, budget: ByteBudget, dry_run: bool) -> None:
        self.source, self.to, self.budget, self.dry_run = source, to, budget, dry_run
        self.sent: list[int] = []
        self._lock = threading.Lock()

    def all(self, manifest: Manifest, engine: Engine, progress: Progress) -> None:
        places: dict[str, Place] = {}
        for file, chunk in manifest.chunks():
            places.setdefault(chunk.sha256, (file, chunk))
        task = progress.add(f"copy {manifest.name}", sum(c.size for _, c in places.values()))
        faults: list[tuple[Fault, BuilderError]] = []

        def drawn() -> Iterator[Place]:
            for place in places.values():
                self.budget.take(place[1].size)
                yield place

        for place, wrong in each(engine, self._one, drawn()):
            if wrong:
                faults.append(wrong)
            progress.advance(task, place[1].size)
        progress.done(task, "failed" if faults else f"{len(self.sent)} of {len(places)} chunks were missing")
        if faults:
            raise failure(f"{len(faults)} of {len(places)} chunks could not be copied", faults)

    def _one(self, place: Place) -> tuple[Fault, BuilderError] | None:
        """What is wrong with the chunk, if anything."""
        file, chunk = place
        try:
            found = self.to.size(chunk.key)
            if found is not None and found != chunk.size:
                raise other_size(self.to.url, chunk.key, found, chunk.size)
            if found is not None:
                return None
            if not self.dry_run:
                body = _read(self.source, chunk)
                self.to.put(chunk.key, body, sha256=chunk.sha256, crc64nvme=chunk.crc64nvme, absent=True)
            with self._lock:
                self.sent.append(chunk.size)
            return None
        except IntegrityError as exc:
            return chunk_fault(file, chunk, exc.message, f"sha256 {chunk.sha256}"), exc
        finally:
            self.budget.give(chunk.size)


def _read(source: RetryingSource, chunk: Chunk) -> Buffer:
    """The chunk, its sha256 checked; wrong bytes are read again, in case it was the wire."""

    def check(body: Buffer) -> None:
        if (found := sha256_hex(body)) != chunk.sha256:
            raise IntegrityError(
                f"{source.url}/{chunk.key}: sha256 {found}", hint="run `builder weights repair` there", where={"key": chunk.key}
            )

    body = source.read(chunk.key, limit=chunk.size, check=check)
    if body is None:
        raise IntegrityError(f"{source.url}/{chunk.key}: no object", hint="run `builder weights repair` there")
    return body


def _publish(to: Store, manifest: Manifest, signatures: Signatures | None) -> None:
    """The manifest and what is beside it; the refs come after."""
    body = manifest.to_bytes()
    key = manifest_key(manifest.digest)
    found = to.get(key, len(body)) if to.size(key) == len(body) else None
    if found != body:
        to.replace(key, body, sha256=sha256_hex(body), crc64nvme=crc64nvme_hex(body))
    if signatures is not None:
        body = _joined(to, signatures).to_bytes()
        to.replace(sign.signature_key(manifest.digest), body, sha256=sha256_hex(body), crc64nvme=crc64nvme_hex(body))


def _joined(to: Store, signatures: Signatures) -> Signatures:
    """Those of both stores: a key that vouched in the second only still does. Damaged ones there are replaced."""
    with contextlib.suppress(IntegrityError):
        there = sign.read_signatures(Reader(to), signatures.digest)
        for old in there.signatures if there and there.name == signatures.name else ():
            if (old.key, old.kind) not in {(s.key, s.kind) for s in signatures.signatures}:
                signatures = signatures.having(old)
    return signatures
