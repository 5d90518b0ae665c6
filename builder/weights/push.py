"""A planned model into a store: every byte read once, hashed twice, sent only where the store lacks it.

    reader (this thread)   reads the pieces of one file after another, in order
    file hash (1 thread)   sha256 of the whole file, over the same buffers
    engine (n threads)     sha256 and CRC64NVME of each piece; asks the store; puts what is missing

A buffer lives until its piece is stored and in the file's hash; a byte budget bounds all buffers together. The manifest is
put after its last chunk, the refs after the manifest: a run that is killed leaves chunks only, and the next one finds them.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from builder import __version__
from builder.engines.base import Engine
from builder.errors import BuilderError, ConfigError, IntegrityError, printable
from builder.format.manifest import NAME, SMALL_BYTES, Chunk, File, Manifest, manifest_key, ref_key
from builder.models.source import ModelFile, changed
from builder.progress import NoProgress, Progress
from builder.stores.base import Store, other_size
from builder.transfer.checksum import Buffer, crc64nvme_hex, file_crc64, sha256_hex
from builder.transfer.faults import Fault, failure, refused, without_key
from builder.transfer.manifests import REF_BYTES
from builder.weights import priority
from builder.weights.budget import ByteBudget
from builder.weights.plain import publish_plain
from builder.weights.split import ChunkPlan, FilePlan

MAX_SMALL_BYTES = 32 << 20  # of all files inlined in one manifest; every server reads it whole


@dataclass(frozen=True)
class PushReport:
    """What a push did, or with dry_run would do.

    digest: the manifest's.  chunks: distinct ones; sent and reused (found in the store) add up to them.  *_bytes: theirs.
    bytes: of all files.  plain_bytes: sent as plain files.
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
    plain: bool = False,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> PushReport:
    """Put the model into the store. When this returns, refs/<name> leads to a complete model there.

    plain: also put the files as they are under plain/<name>/ (see weights.plain).

    Memory: chunk data of at most engine.concurrency x plan.chunk_bytes (or one chunk, if that is larger).
    Raises IntegrityError where a chunk is in the store with another size, a file changes while it is read or differs from
    what its origin says, and RemoteError or CapabilityError where the store fails; then no manifest is written. All
    faults are reported together.
    """
    if not NAME.match(name):
        raise ConfigError(f"name {name!r} does not match {NAME.pattern}", hint="give another with --name")
    start = time.monotonic()
    progress = progress or NoProgress()
    with contextlib.suppress(IntegrityError):  # a damaged ref is about to be replaced
        # Wrong credentials, no bucket and unreachable stores fail here, before anything is read. Not a HEAD: its answer has
        # no body, so S3 could not say why.
        store.get(ref_key(name), REF_BYTES)
    run = _Push(plan, store, engine, progress, dry_run)
    manifest = run.manifest(name)
    if not dry_run:
        _publish(manifest, store)
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
        sent_chunks=len(run.sent),
        sent_bytes=sum(run.sent.values()),
        reused_chunks=len(run.reused),
        reused_bytes=sum(run.reused.values()),
        plain_bytes=plain_bytes,
        peak_bytes=run.budget.peak,
        seconds=time.monotonic() - start,
        dry_run=dry_run,
        manifest=manifest,
    )


def _publish(manifest: Manifest, store: Store) -> None:
    """The manifest, then the refs to it. Only now does the model exist."""
    body = manifest.to_bytes()
    digests = {"sha256": sha256_hex(body), "crc64nvme": crc64nvme_hex(body)}
    key = manifest_key(manifest.digest)
    found = store.get(key, len(body)) if store.size(key) == len(body) else None
    if found != body:
        store.replace(key, body, **digests)  # missing or damaged; its name is its digest, so this is the only right content
    ref = f"{manifest.digest}\n".encode()
    for name in [manifest.name] + ([f"{manifest.name}@{manifest.revision}"] if manifest.revision else []):
        store.replace(ref_key(name), ref, sha256=sha256_hex(ref), crc64nvme=crc64nvme_hex(ref))


class _Piece:
    """One buffer on its way. data is dropped as soon as it is stored and hashed."""

    def __init__(self, plan: FilePlan, index: int, data: bytes, hashed: Future[None]) -> None:
        self.plan, self.index, self.data, self.hashed = plan, index, data, hashed

    @property
    def offset(self) -> int:
        return self.plan.pieces[self.index][0]

    @property
    def size(self) -> int:
        return self.plan.pieces[self.index][1]

    def fault(self, error: BuilderError) -> Fault:
        start, end = self.offset, self.offset + self.size
        names = tuple(t.name for t in self.plan.tensors if t.size and t.offset < end and t.offset + t.size > start)
        key = str(error.where.get("object", error.where.get("key", "")))
        expected, found = error.where.get("expected"), error.where.get("found")
        if expected is None or found is None:
            return Fault(key, self.plan.file.path, names, start, end, "stored", without_key(error.message, key))
        return Fault(key, self.plan.file.path, names, start, end, f"{expected} bytes", f"{found} bytes")


class _Push:
    def __init__(self, plan: ChunkPlan, store: Store, engine: Engine, progress: Progress, dry_run: bool) -> None:
        self.plan, self.store, self.engine, self.dry_run = plan, store, engine, dry_run
        self.progress = progress
        self.budget = ByteBudget(engine.concurrency * plan.chunk_bytes)
        self.sent: dict[str, int] = {}
        self.reused: dict[str, int] = {}
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._stop = False  # the store itself fails: no use in reading on
        self._digests: dict[str, str] = {}
        self._small: dict[str, bytes] = {}
        self._small_bytes = 0  # of the files before this one

    def manifest(self, name: str) -> Manifest:
        """Send what is missing; the manifest of what is then there."""
        chunks: dict[tuple[str, int], Chunk] = {}
        faults: list[tuple[Fault, BuilderError]] = []
        task = self.progress.add(f"push {name}", self.plan.snapshot.size)
        with ThreadPoolExecutor(1, thread_name_prefix="file-hash") as hasher:
            for piece, result in self.engine.map(self._store, self._pieces(hasher)):
                if isinstance(result, BuilderError):
                    faults.append((piece.fault(result), result))
                    self._stop = self._stop or not isinstance(result, IntegrityError)
                else:
                    chunks[piece.plan.file.path, piece.index] = result
                self.progress.advance(task, piece.size)
        if faults:
            self.progress.done(task, "failed")
            raise self._failure(faults)
        self.progress.done(task, f"{len(self.sent)} chunks {'to send' if self.dry_run else 'sent'}, {len(self.reused)} there")
        files = tuple(self._file(f, [chunks[f.file.path, i] for i in range(len(f.pieces))]) for f in self.plan.files)
        snapshot = self.plan.snapshot
        tool = f"coldstart-builder {__version__}"
        return Manifest(name, snapshot.source, snapshot.revision, tool, files, priority.order(files), self._small)

    def _pieces(self, hasher: ThreadPoolExecutor) -> Iterator[_Piece]:
        """Every piece of every file, read in order. Ends early once the store fails."""
        for plan in self.plan.files:
            digest = hashlib.sha256()
            with plan.file.open() as reading:
                for index, (offset, size) in enumerate(plan.pieces):
                    if self._stop:
                        return
                    self.budget.take(size)
                    data = reading.read_at(offset, size)
                    if len(data) != size:
                        raise changed(plan.file, f"it ends at byte {offset + len(data)} of {plan.file.size}")
                    self._keep_small(plan, data)
                    yield _Piece(plan, index, data, hasher.submit(digest.update, data))
                    del data
                reading.require_unchanged()
            hasher.submit(lambda: None).result()  # the hasher works in order: every piece of this file is in
            self._check_origin(plan.file, digest.hexdigest())

    def _keep_small(self, plan: FilePlan, data: bytes) -> None:
        file = plan.file
        if plan.mode == "raw" and file.size <= SMALL_BYTES and self._small_bytes + file.size <= MAX_SMALL_BYTES:
            self._small[file.path] = self._small.get(file.path, b"") + data

    def _check_origin(self, file: ModelFile, digest: str) -> None:
        self._digests[file.path] = digest
        if file.size == 0:
            self._small[file.path] = b""
        self._small_bytes += len(self._small.get(file.path, b""))
        if file.sha256 and digest != file.sha256:
            raise IntegrityError(
                f"{printable(file.path)}: sha256 {digest}, but its origin says {file.sha256}",
                hint=f"delete {file.at} and download it again",
                where={"file": file.path, "expected": file.sha256, "found": digest},
            )

    def _store(self, piece: _Piece) -> Chunk:
        """Hash one piece, and put it if it is missing."""
        try:
            data = piece.data
            chunk = Chunk(sha256_hex(data), piece.offset, piece.size, crc64nvme_hex(data))
            with self._lock:
                first = chunk.sha256 not in self._seen
                self._seen.add(chunk.sha256)
            if first:
                self._send(chunk, data)
            piece.hashed.result()
            return chunk
        finally:
            piece.data = b""
            self.budget.give(piece.size)

    def _send(self, chunk: Chunk, data: Buffer) -> None:
        found = self.store.size(chunk.key)
        if found is not None and found != chunk.size:
            raise other_size(self.store.url, chunk.key, found, chunk.size)
        if found is None and not self.dry_run:
            self.store.put(chunk.key, data, sha256=chunk.sha256, crc64nvme=chunk.crc64nvme)
        with self._lock:
            (self.sent if found is None else self.reused)[chunk.sha256] = chunk.size

    def _file(self, plan: FilePlan, chunks: list[Chunk]) -> File:
        file, digest = plan.file, self._digests[plan.file.path]
        tensors = tuple(sorted(plan.tensors, key=lambda t: t.name))  # as the canonical form has them
        return File(file.path, file.size, digest, file_crc64(chunks), plan.mode, plan.header, tuple(chunks), tensors)

    def _failure(self, faults: list[tuple[Fault, BuilderError]]) -> BuilderError:
        """What stopped the push: every chunk that is wrong by name, but a store that fails in one line."""
        wrong = [(fault, error) for fault, error in faults if isinstance(error, IntegrityError)]
        if not wrong:
            return refused([error for _, error in faults])
        if len(faults) == 1:
            return wrong[0][1]
        what = f"{self.store.url}: {len(wrong)} of {self.plan.chunks} chunks could not be stored"
        if others := [error for _, error in faults if not isinstance(error, IntegrityError)]:
            what += f"; then {refused(others).message}"
        return failure(what, wrong)
