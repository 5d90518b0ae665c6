"""A manifest to plain files: one writer per machine, resumable, verified, visible only when complete.

Chunks are read in need order into a hidden folder beside the target (`.<name>.partial`): each piece is digested and written
while it is in the processor's cache, and a chunk counts, in the journal, only once its digests are right. At the end files
and folders are synced, the marker is written, and one rename makes the model visible. A reader therefore sees no model or
all of it, whatever happens to this process or this machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, IntegrityError, RemoteError
from builder.format.manifest import Chunk, File, Manifest
from builder.format.volume import JOURNAL, MANIFEST, MARKER, marker_digest, partial_dir
from builder.transfer import checksum
from builder.transfer.buffers import MEMORY_BYTES, Buffers
from builder.transfer.claim import disk_errors, is_complete, locked, need_space, refuse_other, sync, write_synced
from builder.transfer.faults import Fault, chunk_fault, failure
from builder.transfer.fetch import digest_chunk, fetch, reserve, writer
from builder.transfer.flush import Flusher
from builder.transfer.journal import Journal
from builder.transfer.link import FIRST, MOST, Link
from builder.transfer.order import first_layers
from builder.transfer.progress import Progress, Silent
from builder.transfer.retry import THROTTLED, interruptible, is_transient
from builder.transfer.source import FolderSource, Source
from builder.transfer.workers import each

OnChunk = Callable[[File, Chunk], None]
SPARE_BYTES = 1 << 20  # folders, journal, marker


@dataclass(frozen=True)
class RestoreReport:
    """What a restore did.

    folder: where the model lies.  digest: its manifest's.  reused_bytes: found on disk, from an earlier run.
    fetched_bytes, fetched_chunks: read from the source; a chunk that goes to several places counts once.
    seconds: all of it.  first_layers_s: until embeddings and the first layer were on disk; None if the model's tensors
    name no layers, 0 if nothing had to be done.
    """

    folder: str
    digest: str
    fetched_bytes: int
    reused_bytes: int
    fetched_chunks: int
    seconds: float
    first_layers_s: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Transfer:
    """How a restore reads.

    concurrency: requests at once; None: as many as make it faster (see `link`).  memory: bytes of chunk data in flight at
    most, or one window (see `buffers`).  sha256: also check each fetched chunk's sha256, which is what holds against someone
    who writes to the store; None: unless the source is a folder.
    """

    concurrency: int | None = None
    memory: int = MEMORY_BYTES
    sha256: bool | None = None


def restore(
    manifest: Manifest,
    source: Source,
    folder: Path,
    *,
    concurrency: int | None = None,
    memory: int = MEMORY_BYTES,
    progress: Progress | None = None,
    on_chunk: OnChunk | None = None,
    sha256: bool | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RestoreReport:
    """The model in `folder`, byte for byte, complete and on disk when this returns.

    memory: bytes of chunk data in flight at most, or one window.  concurrency: requests at once; None: as many as make it
    faster (see `link`).
    on_chunk: called from worker threads as on_chunk(file, chunk) for each place of a chunk once it is verified and
    written (into the hidden folder).  sha256: also check each fetched chunk's sha256; None: unless the source is a folder.

    Nothing is done if the model is there already. Another restore of the same folder is waited for.
    Raises IntegrityError (exit 3), RemoteError (5) or CapabilityError (4: disk full, permission), naming every failed
    chunk; ConfigError if `folder` holds something else. Whatever is raised, finished chunks are kept for the next try.
    """
    progress, digest, start = progress or Silent(), manifest.digest, clock()
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow a link that stands for the folder
    with disk_errors(folder):
        if is_complete(folder, manifest, digest):
            return RestoreReport(str(folder), digest, 0, manifest.size, 0, clock() - start, 0.0)
        _check_sums(manifest)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder, progress):
            if is_complete(folder, manifest, digest):
                return RestoreReport(str(folder), digest, 0, manifest.size, 0, clock() - start, 0.0)
            refuse_other(folder, digest)
            if sha256 is None:
                sha256 = not isinstance(getattr(source, "inner", source), FolderSource)
            job = _Restore(manifest, digest, source, folder, progress, on_chunk, sha256, clock)
            job.run(concurrency, memory)
            return job.report(start)


class _Restore:
    """One restore, under the folder's lock."""

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        source: Source,
        folder: Path,
        progress: Progress,
        on_chunk: OnChunk | None,
        sha256: bool,
        clock: Callable[[], float],
    ) -> None:
        self.manifest, self.digest, self.folder, self.progress = manifest, digest, folder, progress
        self.partial = partial_dir(folder)
        self.stop = threading.Event()
        self.source = interruptible(source, self._pause, self._heard)
        self.on_chunk, self.sha256, self.clock = on_chunk, sha256, clock
        self.places: dict[str, list[tuple[File, Chunk]]] = {}
        for file, chunk in manifest.chunks():
            self.places.setdefault(chunk.sha256, []).append((file, chunk))
        self.first = first_layers(manifest)
        self.first_at: float | None = None
        self.fetched_bytes = self.fetched_chunks = self.reused_bytes = self.remote_failures = 0
        self.faults: list[tuple[Fault, BuilderError]] = []
        self.lock = threading.Lock()

    def run(self, concurrency: int | None, memory: int) -> None:
        if marker_digest(self.partial) == self.digest:  # stopped between its marker and its rename: all is on disk
            self.reused_bytes = self.manifest.size
            return self._show()
        self.buffers = Buffers(memory, most=concurrency or MOST)
        self.link = Link(first=concurrency or FIRST, most=self.buffers.count)
        self._prepare()
        journal = Journal(self.partial / JOURNAL, self.digest)
        try:
            with Flusher() as self.flusher:
                self._transfer(journal)
        finally:
            journal.close()
        self.flusher.require()
        self._publish()
        return None

    def report(self, start: float) -> RestoreReport:
        first = None if self.first_at is None else self.first_at - start
        return RestoreReport(
            str(self.folder),
            self.digest,
            self.fetched_bytes,
            self.reused_bytes,
            self.fetched_chunks,
            self.clock() - start,
            first,
        )

    def _pause(self, seconds: float) -> None:
        """Wait before another try; not at all once the work is being stopped."""
        self.stop.wait(seconds)

    def _heard(self, exc: BuilderError) -> None:
        if exc.where.get("status") in THROTTLED:
            self.link.throttled()

    def _prepare(self) -> None:
        """The hidden folder with every file at its full size, its blocks reserved."""
        _discard_other(self.partial, self.digest)
        (self.partial / JOURNAL).parent.mkdir(parents=True, exist_ok=True)
        held = sum(p.stat().st_blocks * 512 for p in self.partial.rglob("*") if p.is_file())
        need_space(self.partial, self.manifest.size + SPARE_BYTES - held)
        for file in self.manifest.files:
            path = self.partial / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            reserve(path, file.size)

    def _transfer(self, journal: Journal) -> None:
        task = self.progress.add(f"restore {self.manifest.name}", self.manifest.size)

        def one(sha256: str) -> None:
            self._guarded(sha256, journal)
            self.progress.advance(task, sum(chunk.size for _, chunk in self.places[sha256]))

        try:
            each(self.manifest.order, one, workers=min(self.buffers.count, len(self.places)), stop=self.stop)
            if self.faults:
                rest = " (the rest was not tried)" if self.stop.is_set() else ""
                raise failure(
                    f"{len(self.faults)} of {len(self.places)} chunks failed{rest}, from {self.source.url}:", self.faults
                )
        finally:
            self.progress.done(task)

    def _guarded(self, sha256: str, journal: Journal) -> None:
        """One chunk; its failure is noted and the others go on, unless the store as a whole seems to be gone."""
        try:
            with self.link.chunk(), self.buffers.one() as window:
                self._chunk(sha256, journal, window)
        except (IntegrityError, RemoteError) as exc:
            file, chunk = self.places[sha256][0]
            with self.lock:
                self.faults.append((chunk_fault(file, chunk, exc.message), exc))
                if isinstance(exc, RemoteError):
                    self.remote_failures += 1
                    if not is_transient(exc) or self.remote_failures >= min(max(FIRST, self.link.limit), self.buffers.count):
                        self.stop.set()

    def _chunk(self, sha256: str, journal: Journal, window: memoryview) -> None:
        places = self.places[sha256]
        if sha256 in journal.recorded and self._is_written(places, window):
            with self.lock:
                self.reused_bytes += sum(chunk.size for _, chunk in places)
        else:
            self._fetch(places, window)
            journal.record(sha256)
        self.link.arrived(places[0][1].size)
        if self.on_chunk:
            for file, chunk in places:
                self.on_chunk(file, chunk)
        self._note_first(sha256)

    def _fetch(self, places: list[tuple[File, Chunk]], window: memoryview) -> None:
        with writer(self.partial, places) as write:
            remote = fetch(self.manifest, places, self.source, window, write, sha256=self.sha256)
        for file, chunk in places:
            self.flusher.wrote(self.partial / file.path, chunk.size)
        with self.lock:
            self.remote_failures = 0
            if remote:
                self.fetched_bytes += places[0][1].size
                self.fetched_chunks += 1

    def _is_written(self, places: list[tuple[File, Chunk]], window: memoryview) -> bool:
        return all(
            digest_chunk(self.partial / file.path, chunk, window, sha256=False).crc64nvme == chunk.crc64nvme
            for file, chunk in places
        )

    def _note_first(self, sha256: str) -> None:
        with self.lock:
            if sha256 in self.first:
                self.first.discard(sha256)
                if not self.first:
                    self.first_at = self.clock()

    def _publish(self) -> None:
        """Everything on disk, then the marker, then the name."""
        for file in self.manifest.files:
            sync(self.partial / file.path)
        write_synced(self.partial / MANIFEST, self.manifest.to_bytes())
        for path in [self.partial, *(p for p in self.partial.rglob("*") if p.is_dir())]:
            path.chmod(0o755)
            sync(path)
        write_synced(self.partial / MARKER, f"{self.digest}\n".encode())
        (self.partial / JOURNAL).unlink()
        sync((self.partial / MARKER).parent)
        self._show()

    def _show(self) -> None:
        self.partial.rename(self.folder)  # onto nothing, or an empty folder: the kernel refuses any other
        sync(self.folder.parent)


def _check_sums(manifest: Manifest) -> None:
    """Raises IntegrityError if a file's checksum is not that of its chunks: then chunks that are right make a wrong file."""
    for file in manifest.files:
        found = checksum.file_crc64(file.chunks)
        if found != file.crc64nvme:
            raise IntegrityError(
                f"{manifest.name}: {file.path}: chunks combine to crc64nvme {found}, expected {file.crc64nvme}",
                hint="push the model again",
                where={"file": file.path},
            )


def _discard_other(partial: Path, digest: str) -> None:
    """Remove what an interrupted restore of another version left under this name."""
    try:
        with (partial / JOURNAL).open("rb") as file:
            head = file.read(len(digest) + 1)
    except OSError:
        head = b""
    if head != f"{digest}\n".encode():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(partial)
