"""What one machine does with one range of a model's file, knowing nothing but the task: read, hash, put what is missing.

All of this is pickled on its way to a worker and back.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from builder.engines.local import LocalEngine
from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError
from builder.format.manifest import Chunk
from builder.models.source import LocalFile, ModelFile, Reading, changed
from builder.stores.base import Store, other_size
from builder.transfer.checksum import Buffer, Digests, crc64nvme_hex, sha256_hex
from builder.weights.budget import ByteBudget
from builder.weights.split import Piece, fixed

BLOCK_BYTES = 8 << 20  # of one read of a whole file


@dataclass(frozen=True)
class Range:
    """Pieces of one file, one after another. first: index of the first one."""

    file: ModelFile
    first: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(size for _, size in self.pieces)


@dataclass(frozen=True)
class Whole:
    """One file from its first byte to its last."""

    file: ModelFile

    @property
    def size(self) -> int:
        return self.file.size


@dataclass(frozen=True)
class Landed:
    """A range that was worked on. found: of each piece its digests, or why the store has it not.  sent: digests of those put.

    peak_bytes: the most that was in memory at once.
    """

    found: tuple[Chunk | BuilderError, ...]
    sent: frozenset[str]
    peak_bytes: int


@dataclass(frozen=True)
class Read:
    """A whole file's digests, in hex."""

    sha256: str
    crc64nvme: str


@dataclass(frozen=True)
class Worker:
    """What a machine needs to know to work on its own; picklable, and without credentials: it has its own.

    witness: key of an object that the driver wrote, by which a worker knows the store; "" where there is none.
    threads: pieces at once.  memory: bytes of them at once.  dry_run: put nothing.
    """

    store: Store
    witness: str
    threads: int
    memory: int
    dry_run: bool

    def __call__(self, task: Range | Whole) -> Landed | Read:
        """Raises the source's faults, and ConfigError where this machine sees another source or store."""
        return self._range(task) if isinstance(task, Range) else _whole(task.file, self._ahead)

    @property
    def _ahead(self) -> int:
        return max(1, min(self.threads, self.memory // BLOCK_BYTES - 1))

    def _range(self, task: Range) -> Landed:
        if self.witness and self.store.size(self.witness) is None:
            raise ConfigError(
                f"{platform.node()}: {self.store.url} is another store there than where the push was started",
                hint="use a bucket, or a folder that every node has at the same path: a shared file system",
                where={"node": platform.node(), "key": self.witness},
            )
        with _opened(task.file) as reading:
            work = _Work(self, task, reading)
            found = dict(LocalEngine(self.threads).map(work.one, work.drawn()))
            if work.broken:
                raise work.broken[0]
            reading.require_unchanged()
        return Landed(tuple(found[i] for i in sorted(found)), frozenset(work.sent), work.budget.peak)


class _Work:
    """One range under way on one machine. broken: faults of the source."""

    def __init__(self, worker: Worker, task: Range, reading: Reading) -> None:
        self.worker, self.task, self.reading = worker, task, reading
        self.budget = ByteBudget(worker.memory)
        self.broken: list[BuilderError] = []
        self.sent: set[str] = set()
        self._stop = False

    def drawn(self) -> Iterator[int]:
        """The pieces in order, the memory of each taken. Ends early once the store or the source fails."""
        for index, (_, size) in enumerate(self.task.pieces):
            if self._stop:
                return
            self.budget.take(size)
            yield index

    def one(self, index: int) -> Chunk:
        offset, size = self.task.pieces[index]
        try:
            data = self._read(offset, size)
            chunk = Chunk(sha256_hex(data), offset, size, crc64nvme_hex(data))
            if put(self.worker.store, chunk, data, dry_run=self.worker.dry_run):
                self.sent.add(chunk.sha256)
            return chunk
        except BuilderError as exc:
            self._stop = self._stop or not isinstance(exc, IntegrityError)
            raise
        finally:
            self.budget.give(size)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return read(self.task.file, self.reading, offset, size)
        except BuilderError as exc:
            self.broken.append(exc)
            self._stop = True
            raise


def _whole(file: ModelFile, ahead: int) -> Read:
    """ahead: blocks read before their turn, so that a source far away is not waited for block by block."""
    digests = Digests()
    coming: deque[Future[bytes]] = deque()
    with _opened(file) as reading, ThreadPoolExecutor(ahead, thread_name_prefix="read-ahead") as pool:
        for offset, size in fixed(0, file.size, BLOCK_BYTES):
            coming.append(pool.submit(read, file, reading, offset, size))
            if len(coming) > ahead:
                digests.update(coming.popleft().result())
        while coming:
            digests.update(coming.popleft().result())
        reading.require_unchanged()
    return Read(digests.sha256, digests.crc64nvme)


def read(file: ModelFile, reading: Reading, offset: int, size: int) -> bytes:
    """Exactly these bytes. Raises IntegrityError where the file ends early, CapabilityError where the disk fails."""
    try:
        data = reading.read_at(offset, size)
    except OSError as exc:
        raise CapabilityError(
            f"{platform.node()}: {file.at}: cannot be read: {exc.strerror}", hint="check the disk", where={"file": file.path}
        ) from exc
    if len(data) != size:
        raise changed(file, f"it ends at byte {offset + len(data)} of {file.size}")
    return data


def put(store: Store, chunk: Chunk, data: Buffer, *, dry_run: bool) -> bool:
    """Put the chunk if it is missing; whether it was. Raises IntegrityError for an object of another size in its place."""
    found = store.size(chunk.key)
    if found is not None and found != chunk.size:
        raise other_size(store.url, chunk.key, found, chunk.size)
    if found is None and not dry_run:
        store.put(chunk.key, data, sha256=chunk.sha256, crc64nvme=chunk.crc64nvme, absent=True)
    return found is None


@contextlib.contextmanager
def _opened(file: ModelFile) -> Iterator[Reading]:
    """The file on this machine, which may not be the one that planned the push."""
    node = platform.node()
    if isinstance(file, LocalFile) and not os.path.lexists(file.location):  # of a path that may be unreadable
        raise ConfigError(
            f"{node}: {file.at}: no such file there",
            hint="put the model on a file system that every node has at the same path, or push it from hf://",
            where={"node": node, "file": file.path},
        )
    with file.open() as reading:
        yield reading
