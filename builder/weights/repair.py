"""Bad and missing chunks of a store, put again from the model's source. Nothing else is sent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from builder.engines.base import Engine
from builder.errors import BuilderError, IntegrityError
from builder.format.manifest import Chunk, File
from builder.models.source import ModelFile, ModelSnapshot
from builder.progress import NoProgress, Progress
from builder.stores.base import Reader, Store
from builder.transfer.checksum import sha256_hex
from builder.transfer.faults import Fault, chunk_fault, failure
from builder.transfer.manifests import read_manifest
from builder.weights.lease import hold
from builder.weights.verify import verify


@dataclass(frozen=True)
class RepairReport:
    """What was done, or with dry_run would be. objects: keys of the chunks put again.  bad: what verify found."""

    store: str
    name: str
    digest: str
    chunks: int
    repaired_chunks: int
    repaired_bytes: int
    objects: tuple[str, ...]
    bad: tuple[Fault, ...]
    seconds: float
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "objects": list(self.objects), "bad": [f.to_json() for f in self.bad]}


def repair(
    store: Store,
    ref: str,
    snapshot: ModelSnapshot,
    *,
    engine: Engine,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> RepairReport:
    """Verify the model by reading all of it, then replace what is bad or missing.

    The source's bytes are checked against the chunk's sha256 before they replace anything.
    Raises IntegrityError that names each chunk which the source does not have as it was pushed; the others are repaired.
    """
    progress = progress or NoProgress()
    read_manifest(Reader(store), ref)  # a mistyped store or model ends it before a lease is written
    with contextlib.nullcontext() if dry_run else hold(store, "push", progress=progress):
        return _repair(store, ref, snapshot, engine, progress, dry_run)


def _repair(store: Store, ref: str, snapshot: ModelSnapshot, engine: Engine, progress: Progress, dry_run: bool) -> RepairReport:
    start = time.monotonic()
    found = verify(store, ref, engine=engine, progress=progress)
    manifest = found.manifest
    assert manifest is not None  # verify returns it
    files = {f.path: f for f in snapshot.files}
    bad: dict[str, list[tuple[File, Chunk]]] = {fault.object: [] for fault in found.faults if fault.object}
    for file, chunk in manifest.chunks():
        if chunk.key in bad:
            bad[chunk.key].append((file, chunk))

    def mend(places: list[tuple[File, Chunk]]) -> Chunk:
        chunk = places[0][1]
        body = _from_source(places, files)
        if not dry_run:
            store.replace(chunk.key, body, sha256=chunk.sha256, crc64nvme=chunk.crc64nvme)
        return chunk

    repaired, faults = _run(engine, mend, bad.values(), progress)
    if faults:
        raise failure(f"{store.url}: {len(faults)} of {len(bad)} bad chunks could not be repaired", faults)
    if found.faults and not bad:
        raise found.error()  # the manifest disagrees with itself; no chunk can mend that
    return RepairReport(
        store=store.url,
        name=manifest.name,
        digest=manifest.digest,
        chunks=found.chunks,
        repaired_chunks=len(repaired),
        repaired_bytes=sum(c.size for c in repaired),
        objects=tuple(sorted(c.key for c in repaired)),
        bad=found.faults,
        seconds=time.monotonic() - start,
        dry_run=dry_run,
    )


def _run(
    engine: Engine, mend: Any, bad: Iterable[list[tuple[File, Chunk]]], progress: Progress
) -> tuple[list[Chunk], list[tuple[Fault, BuilderError]]]:
    work = list(bad)
    task = progress.add("repair", len(work), "chunks")
    repaired: list[Chunk] = []
    faults: list[tuple[Fault, BuilderError]] = []
    for places, result in engine.map(mend, work):
        if isinstance(result, BuilderError):
            faults.append((chunk_fault(*places[0], result.message, f"sha256 {places[0][1].sha256}"), result))
        else:
            repaired.append(result)
        progress.advance(task, 1)
    progress.done(task, f"{len(repaired)} chunks")
    return repaired, faults


def _from_source(places: list[tuple[File, Chunk]], files: dict[str, ModelFile]) -> bytes:
    """The chunk's right bytes, from any of the places it goes to."""
    why = []
    for file, chunk in places:
        model_file = files.get(file.path)
        if model_file is None:
            why.append(f"the source has no {file.path}")
            continue
        try:
            with model_file.open() as reading:
                body = reading.read_at(chunk.offset, chunk.size)
        except (BuilderError, OSError) as exc:
            why.append(f"{model_file.at} cannot be read: {exc}")
            continue
        if sha256_hex(body) == chunk.sha256:
            return body
        end = chunk.offset + chunk.size
        why.append(f"the source's {file.path} differs at bytes [{chunk.offset}, {end}), or is another version")
    raise IntegrityError("; ".join(why), hint="give the source that was pushed, or push this one as a new version")
