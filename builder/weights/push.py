"""A planned model into a store: what is missing is sent, then the manifest, then the refs that lead to it.

    unchanged    every digest is on record, the refs and the manifest in the store are the ones this would write, and every
                 chunk is there: nothing is read, nothing is written
    otherwise    a lease on the store; the pieces (weights.send); the manifest after its last chunk; the refs after the manifest

A run that is killed leaves chunks only, and what it learned in the index (weights.index): the next one neither hashes nor
sends those again.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

from builder.engines.base import Cluster, Engine
from builder.engines.local import LocalEngine
from builder.errors import BuilderError, ConfigError, IntegrityError
from builder.format.manifest import MAX_MANIFEST_BYTES, NAME, Chunk, Manifest, manifest_key, parse, ref_key
from builder.progress import NoProgress, Progress
from builder.stores.base import Store
from builder.transfer.checksum import crc64nvme_hex, sha256_hex
from builder.transfer.manifests import REF_BYTES
from builder.weights import lease
from builder.weights.assemble import assemble, inlined
from builder.weights.budget import SPARE
from builder.weights.index import Index, Known
from builder.weights.plain import publish_plain
from builder.weights.present import Present
from builder.weights.send import Sender, Sent
from builder.weights.split import ChunkPlan
from builder.weights.spread import Spread


@dataclass(frozen=True)
class PushReport:
    """What a push did, or with dry_run would do.

    digest: the manifest's.  chunks: distinct ones; sent and reused (found in the store) add up to them.  *_bytes: theirs.
    bytes: of all files.  read_bytes: of those that were read.  plain_bytes: sent as plain files.
    peak_bytes: the most chunk data in memory at once.  manifest: not part of the JSON form.
    """

    name: str
    digest: str
    store: str
    source: str
    revision: str
    files: int
    bytes: int
    chunks: int
    sent_chunks: int
    sent_bytes: int
    reused_chunks: int
    reused_bytes: int
    read_bytes: int
    plain_bytes: int
    peak_bytes: int
    seconds: float
    dry_run: bool
    manifest: Manifest = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "manifest"}


def push(
    plan: ChunkPlan,
    store: Store,
    engine: Engine,
    *,
    name: str,
    memory: int = 0,
    index: Index | None = None,
    plain: bool = False,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> PushReport:
    """Put the model into the store. When this returns, refs/<name> leads to a complete model there.

    memory: bytes of chunk data at most (or one chunk, if that is larger), on a Cluster those of each task; 0: enough for
    engine.concurrency (engine.threads) chunks.
    index: digests from earlier pushes.  plain: also put the files as they are under plain/<name>/ (see weights.plain).

    Raises IntegrityError where a chunk is in the store with another size, a file changes while it is read or differs from
    what its origin says, and RemoteError or CapabilityError where the store fails; then no manifest is written. All
    faults are reported together.
    """
    if not NAME.match(name):
        raise ConfigError(f"name {name!r} does not match {NAME.pattern}", hint="give another with --name")
    start = time.monotonic()
    progress, index = progress or NoProgress(), index or Index(None)
    # Wrong credentials, no bucket and unreachable stores fail here, before anything is read. Not a HEAD: its answer has no
    # body, so S3 could not say why.
    refs = {ref: _holds(store, ref) for ref in _refs(plan, name)}
    known = {f.file.path: index.known(f.file.identity) for f in plan.files}
    here = LocalEngine(engine.threads) if isinstance(engine, Cluster) else engine
    found = _unchanged(plan, store, here, name, refs, known)
    if found is not None:
        manifest, sent = found
        plain_bytes = publish_plain(manifest, plan.snapshot, store, progress) if plain and not dry_run else 0
    else:
        with contextlib.nullcontext() if dry_run else lease.hold(store, "push", progress=progress) as held:
            sent = _send(
                plan, store, engine, progress, f"push {name}",
                known=known, present=Present(store, plan.chunks), index=index, lease=held,
                memory=memory or int(SPARE * here.concurrency * plan.chunk_bytes),
            )  # fmt: skip
            manifest = assemble(plan, name=name, chunks=sent.chunks, sha256=sent.sha256, small=sent.small)
            if held is not None:
                held.require()
                _publish(manifest, store, refs)
            plain_bytes = publish_plain(manifest, plan.snapshot, store, progress) if plain and not dry_run else 0
    return PushReport(
        name=name,
        digest=manifest.digest,
        store=store.url,
        source=manifest.source,
        revision=manifest.revision,
        files=len(manifest.files),
        bytes=manifest.size,
        chunks=len(manifest.order),
        sent_chunks=len(sent.sent),
        sent_bytes=sum(sent.sent.values()),
        reused_chunks=len(sent.reused),
        reused_bytes=sum(sent.reused.values()),
        read_bytes=sent.read_bytes,
        plain_bytes=plain_bytes,
        peak_bytes=sent.peak_bytes,
        seconds=time.monotonic() - start,
        dry_run=dry_run,
        manifest=manifest,
    )


def _send(plan: ChunkPlan, store: Store, engine: Engine, progress: Progress, title: str, **given: Any) -> Sent:
    """Every chunk stored, by this machine or by many. given: as both take it."""
    if isinstance(engine, Cluster):
        return Spread(plan, store, **given).run(engine, progress, title)
    return Sender(plan, store, **given).run(engine, progress, title)


def _refs(plan: ChunkPlan, name: str) -> list[str]:
    """The refs that a push writes."""
    return [name] + ([f"{name}@{plan.snapshot.revision}"] if plan.snapshot.revision else [])


def _holds(store: Store, ref: str) -> bytes:
    """What the ref's object holds; empty where there is none, or something that is no ref and is about to be replaced."""
    with contextlib.suppress(IntegrityError):
        return bytes(store.get(ref_key(ref), REF_BYTES) or b"")
    return b""


def _unchanged(
    plan: ChunkPlan, store: Store, engine: Engine, name: str, refs: dict[str, bytes], known: dict[str, Known]
) -> tuple[Manifest, Sent] | None:
    """The manifest in the store, if a push would write this very one, and all that it names is there; else None."""
    held = set(refs.values())
    if len(held) != 1 or (chunks := _all_known(plan, known)) is None:
        return None
    digest = held.pop().decode("ascii", "replace").strip()
    try:
        body = store.get(manifest_key(digest), MAX_MANIFEST_BYTES) if refs[name] == _ref_body(digest) else None
        found = parse(bytes(body), at=f"{store.url}/{manifest_key(digest)}", digest=digest) if body is not None else None
    except IntegrityError:  # damaged, or of a newer format: written anew
        return None
    if found is None or set(found.small) != inlined(plan):
        return None
    # The bytes in `small` have the sha256 of their files: parse has seen to that.
    whole = {path: k.sha256 for path, k in known.items()}
    if found != assemble(plan, name=name, chunks=chunks, sha256=whole, small=found.small):
        return None
    sizes = {c.sha256: c.size for file in found.files for c in file.chunks}
    if not _all_there(store, engine, sizes):
        return None
    return found, Sent(reused=sizes)


def _all_known(plan: ChunkPlan, known: dict[str, Known]) -> dict[str, list[Chunk]] | None:
    """Every piece's digests by file, where not one is missing and every file is what its origin says."""
    chunks: dict[str, list[Chunk]] = {}
    for f in plan.files:
        of = known[f.file.path]
        found = [of.chunks[place] for place in f.pieces if place in of.chunks]
        if len(found) < len(f.pieces) or not of.sha256 or (f.file.sha256 or of.sha256) != of.sha256:
            return None
        chunks[f.file.path] = found
    return chunks


def _all_there(store: Store, engine: Engine, sizes: dict[str, int]) -> bool:
    """Whether the store has every chunk, in its right size."""
    present = Present(store, len(sizes))

    def there(item: tuple[str, int]) -> bool:
        try:
            return present.has(*item)
        except IntegrityError:  # the push will say which, and all of them
            return False

    if present.listed:
        return all(map(there, sizes.items()))
    for _, answer in engine.map(there, sizes.items()):
        if isinstance(answer, BuilderError):
            raise answer
        if not answer:
            return False
    return True


def _publish(manifest: Manifest, store: Store, refs: dict[str, bytes]) -> None:
    """The manifest, then the refs to it, where they are not right already. Only now does the model exist.

    refs: what each of them holds.
    """
    body = manifest.to_bytes()
    digests = {"sha256": sha256_hex(body), "crc64nvme": crc64nvme_hex(body)}
    key = manifest_key(manifest.digest)
    found = store.get(key, len(body)) if store.size(key) == len(body) else None
    if found != body:
        store.replace(key, body, **digests)  # missing or damaged; its name is its digest, so this is the only right content
    ref = _ref_body(manifest.digest)
    for name, holds in refs.items():
        if holds != ref:
            store.replace(ref_key(name), ref, sha256=sha256_hex(ref), crc64nvme=crc64nvme_hex(ref))


def _ref_body(digest: str) -> bytes:
    return f"{digest}\n".encode()
