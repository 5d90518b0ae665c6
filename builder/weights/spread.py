"""The pieces of a plan into a store from many machines: bytes go from the source to a worker and on to the store.

    driver     cuts each file into ranges of whole pieces, and asks the store which ones it has; reads small files only
    worker     opens the file itself, reads its range, sha256 and CRC64NVME of each piece, puts what is missing
    worker     the sha256 of a whole file cannot be put together from parts, so one task per file reads it from end to end

So the source is read twice, by different machines, and two reads may differ. That is found: the CRC64NVME of the second
read must be what those of the pieces combine to. A file of one piece is read once. A range whose worker is lost is done
again from its start; what it had put is found in the store, and counts as found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from builder.engines.base import Cluster
from builder.engines.local import LocalEngine
from builder.errors import BuilderError, IntegrityError
from builder.format.manifest import Chunk
from builder.models.source import LocalFile, ModelFile, changed
from builder.progress import Progress
from builder.stores.base import Store
from builder.transfer.checksum import crc64nvme_hex, file_crc64, sha256_hex
from builder.transfer.faults import Fault
from builder.weights.assemble import inlined
from builder.weights.index import Index, Known
from builder.weights.lease import Held as Lease
from builder.weights.present import Present
from builder.weights.ranges import Landed, Range, Read, Whole, Worker, read
from builder.weights.send import Sent, fault, not_as_published, unstored
from builder.weights.split import ChunkPlan, FilePlan

RANGE_BYTES = 256 << 20  # of one task at most: what is done again when a worker is lost
ROUNDS = 4  # ranges for each place in the cluster, so that the last ones end together

Results = Iterator[tuple[Range | Whole, Landed | Read | BuilderError]]


class Spread:
    """One push over a cluster."""

    def __init__(
        self, plan: ChunkPlan, store: Store, *, known: dict[str, Known], present: Present, index: Index, memory: int,
        lease: Lease | None,
    ) -> None:  # fmt: skip
        """known: by path.  memory: bytes, of one task.  lease: None for a dry run, which puts nothing."""
        self._plan, self._store, self._index, self._lease, self._memory = plan, store, index, lease, memory
        self._known, self._present = known, present
        self._files = {f.file.path: f for f in plan.files}
        self._result = Sent()
        self._chunks: dict[str, dict[int, Chunk]] = {path: {} for path in self._files}
        self._whole: dict[str, Read] = {}
        self._faults: list[tuple[Fault, BuilderError]] = []

    def run(self, engine: Cluster, progress: Progress, title: str) -> Sent:
        """Everything stored, or, in a dry run, known. Raises the source's fault, or all those of the store together."""
        task = progress.add(title, self._plan.snapshot.size)
        witness = self._lease.key if self._lease and not getattr(self._store, "keeps_nothing", False) else ""
        worker = Worker(self._store, witness, engine.threads, self._memory, dry_run=self._lease is None)
        small = inlined(self._plan)
        here = [f for f in self._plan.files if f.file.path in small or not f.pieces]
        there = [f for f in self._plan.files if f not in here]
        try:
            self._follow(LocalEngine(engine.threads).map(worker, map(self._small, here)), progress, task)
            self._follow(engine.map(worker, self._tasks(engine, there, progress, task)), progress, task)
            self._collect()
        except BaseException:
            progress.done(task, "failed")
            raise
        done, verb = self._result, "sent" if self._lease else "to send"
        progress.done(task, f"{len(done.sent)} chunks {verb}, {len(done.reused)} there")
        return done

    def _follow(self, results: Results, progress: Progress, task: int) -> None:
        """Take what comes. Raises at once what the source or a worker did wrong, and after the last one what the store did."""
        with contextlib.closing(results):  # type: ignore[type-var]
            for work, result in results:
                if self._lease:
                    self._lease.require()
                if isinstance(result, BuilderError):
                    raise result
                self._result.read_bytes += work.size
                if isinstance(work, Range) and isinstance(result, Landed):
                    self._landed(work, result)
                    progress.advance(task, work.size)
                elif isinstance(result, Read):
                    self._whole[work.file.path] = result
                if any(not isinstance(error, IntegrityError) for _, error in self._faults):
                    break  # the store itself fails: no use in going on
        if self._faults:
            raise unstored(self._store, self._plan, self._faults)

    def _landed(self, work: Range, result: Landed) -> None:
        path = work.file.path
        file = self._files[path]
        for index, found in enumerate(result.found, work.first):
            if isinstance(found, BuilderError):
                self._faults.append((fault(file, *file.pieces[index], found), found))
                continue
            self._require_known(file, found)
            self._chunks[path][index] = found
            if found.sha256 in result.sent:
                self._result.sent[found.sha256] = found.size
        self._result.peak_bytes = max(self._result.peak_bytes, result.peak_bytes)

    def _require_known(self, file: FilePlan, chunk: Chunk) -> None:
        known = self._known[file.file.path].chunks.get((chunk.offset, chunk.size))
        if known is None:
            self._index.add_chunk(file.file.identity, chunk)
        elif known != chunk:
            self._index.forget(file.file.identity)
            raise changed(file.file, "its bytes are others than an earlier push read, under the same time stamps")

    def _small(self, plan: FilePlan) -> Range:
        """A file that is read here, because its bytes go into the manifest; its pieces as a task."""
        file = plan.file
        with file.open() as reading:
            body = read(file, reading, 0, file.size)
        self._result.small[file.path] = body
        self._whole[file.path] = Read(sha256_hex(body), crc64nvme_hex(body))
        return Range(file, 0, plan.pieces)

    def _tasks(self, engine: Cluster, files: list[FilePlan], progress: Progress, task: int) -> Iterator[Range | Whole]:
        """Largest file first, so that none of the long reads starts last."""
        missing = {f.file.path: list(self._missing(f, progress, task)) for f in files}
        size = sum(f.pieces[i][1] for f in files for i in missing[f.file.path])
        limit = min(RANGE_BYTES, size // (engine.concurrency * ROUNDS))
        for plan in sorted(files, key=lambda f: -f.file.size):
            path, file = plan.file.path, _elsewhere(plan.file)
            if len(plan.pieces) > 1 and not self._known[path].sha256:
                yield Whole(file)
            for run in _runs(plan, missing[path], limit):
                yield Range(file, run[0], tuple(plan.pieces[i] for i in run))

    def _missing(self, plan: FilePlan, progress: Progress, task: int) -> Iterator[int]:
        """The pieces that a worker has to see: digests unknown, or not in the store as far as its listing tells."""
        for index, place in enumerate(plan.pieces):
            known = self._known[plan.file.path].chunks.get(place)
            try:
                if known is None or not self._present.listed or not self._present.has(known.sha256, known.size):
                    yield index
                    continue
            except IntegrityError as exc:
                self._faults.append((fault(plan, *place, exc), exc))
                continue
            self._chunks[plan.file.path][index] = known
            progress.advance(task, known.size)

    def _collect(self) -> None:
        """What `assemble` takes, every file checked as a whole."""
        result = self._result
        for path, plan in self._files.items():
            chunks = [self._chunks[path][i] for i in range(len(plan.pieces))]
            result.chunks[path] = chunks
            result.sha256[path] = self._sha256(plan, chunks)
            result.reused |= {c.sha256: c.size for c in chunks if c.sha256 not in result.sent}

    def _sha256(self, plan: FilePlan, chunks: list[Chunk]) -> str:
        """Of the whole file. Raises IntegrityError where it is no longer that of the snapshot, or not what its origin says."""
        file, known, whole = plan.file, self._known[plan.file.path].sha256, self._whole.get(plan.file.path)
        with file.open() as reading:  # here it can be told from one that took its place
            reading.require_unchanged()
        if whole and whole.crc64nvme != file_crc64(chunks):
            raise changed(file, "two reads of it differ")
        sha256 = known or (whole.sha256 if whole else chunks[0].sha256)
        if error := not_as_published(file, sha256):
            raise error
        if not known:
            self._index.add_whole(file.identity, sha256)
        return sha256


def _runs(plan: FilePlan, indexes: Iterable[int], limit: int) -> Iterator[list[int]]:
    """Neighbours among `indexes`, at most `limit` bytes of them, or one piece."""
    run: list[int] = []
    size = 0
    for index in indexes:
        more = plan.pieces[index][1]
        if run and (index != run[-1] + 1 or size + more > limit):
            yield run
            run, size = [], 0
        run.append(index)
        size += more
    if run:
        yield run


def _elsewhere(file: ModelFile) -> ModelFile:
    """The file as another machine finds it: no folder to start from, and no inode, which some network file systems number
    on each machine by themselves.
    """
    return replace(file, location=file.location.absolute(), inode=0) if isinstance(file, LocalFile) else file
