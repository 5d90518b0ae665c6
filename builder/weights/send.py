"""The pieces of a plan into a store: each read once at most, hashed while it is warm, put where the store lacks it.

    caller           draws the pieces in the order of files and bytes, and takes memory for each before anyone works on it
    engine, n tasks  one piece each: read it, sha256 and CRC64NVME, ask, put, note it in the index
    file hashes      sha256 of each whole file over the same buffers, in order; a thread per file, while it has work

Memory is taken in order, by one thread. So whatever a buffer waits for (those before it in its file's hash) has its memory
already, and the budget can neither be overdrawn nor lock up. Files run into each other: nothing waits at the end of one.

What the index knows is not hashed again, and not even read, unless its bytes are needed: to be sent, to be inlined in the
manifest, or for the hash of a whole file that no earlier push came to the end of. The last takes what is in the store
already from there, checked, where the file itself is not on this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from builder.engines.base import Engine
from builder.errors import BuilderError, CapabilityError, IntegrityError, printable
from builder.format.manifest import Chunk
from builder.models.source import Filling, LocalFile, ModelFile, Reading, changed
from builder.progress import Progress
from builder.stores.base import Store
from builder.transfer.checksum import Buffer, crc64nvme_hex, sha256_hex
from builder.transfer.faults import Fault, failure, refused, without_key
from builder.weights.assemble import inlined
from builder.weights.budget import SPARE, ByteBudget, Held
from builder.weights.index import Index, Known
from builder.weights.lease import Held as Lease
from builder.weights.present import Present
from builder.weights.split import ChunkPlan, FilePlan
from builder.weights.whole import WholeHash


@dataclass
class Sent:
    """What came of it. sent, reused: bytes by sha256; reused was in the store before.  read_bytes: of the model's files,
    from wherever they came.  peak_bytes: the most that was in memory at once.

    chunks, sha256, small: as `assemble` takes them.
    """

    chunks: dict[str, list[Chunk]] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    reused: dict[str, int] = field(default_factory=dict)
    read_bytes: int = 0
    peak_bytes: int = 0


class _File:
    """One file on its way. Opened when its first piece is read, closed after its last one. Thread-safe.

    Two things end it, in any order: its last piece has been dealt with (`piece_done`), and its sha256 is known.
    """

    def __init__(self, plan: FilePlan, known: Known, *, inlined: bool) -> None:
        self.plan, self.known, self.inlined = plan, known, inlined
        self.chunks: dict[int, Chunk] = {}
        self.parts: dict[int, bytes] = {}
        self.sha256 = known.sha256
        self.whole: WholeHash | None = None
        self._open = contextlib.ExitStack()
        self._reading: Reading | None = None
        self._left = len(plan.pieces)
        self._ends = 2
        self._lock = threading.Lock()

    @property
    def needs_whole(self) -> bool:
        """Whether all of its bytes have to be seen in order. The sha256 of a file of one chunk is its chunk's."""
        return not self.sha256 and len(self.plan.pieces) > 1

    def read(self, offset: int, size: int, held: Held) -> Buffer:
        """The bytes; in the room of `held` where that is possible."""
        file = self.plan.file
        try:
            with self._lock:
                if self._reading is None:
                    self._reading = self._open.enter_context(file.open())
            if isinstance(self._reading, Filling):
                data: Buffer = held.room()
                found = self._reading.read_into(offset, memoryview(data))
            else:
                data = self._reading.read_at(offset, size)
                found = len(data)
        except OSError as exc:
            raise CapabilityError(
                f"{file.at}: cannot be read: {exc.strerror}",
                hint="check the disk and its permissions",
                where={"file": file.path},
            ) from exc
        if found != size:
            raise changed(file, f"it ends at byte {offset + found} of {file.size}")
        return data

    def piece_done(self) -> bool:
        """Whether that was the last one. Raises IntegrityError if the file was written to since the snapshot."""
        with self._lock:
            self._left -= 1
            if self._left > 0:
                return False
        if self._reading is not None:
            self._reading.require_unchanged()
        self.close()
        return True

    def close(self) -> None:
        self._open.close()

    def end(self) -> bool:
        """One of the two ends is reached; whether it was the second."""
        with self._lock:
            self._ends -= 1
            return self._ends == 0


class _Piece:
    """One piece of a file. held: its place in the budget; of no bytes where none will be read.  known: by the index."""

    def __init__(self, file: _File, index: int, known: Chunk | None, held: Held) -> None:
        self.file, self.index, self.known, self.held = file, index, known, held
        self.offset, self.size = file.plan.pieces[index]

    def fault(self, error: BuilderError) -> Fault:
        return fault(self.file.plan, self.offset, self.size, error)


class Sender:
    """One run. Everything that its tasks share, behind one lock."""

    def __init__(
        self, plan: ChunkPlan, store: Store, *, known: dict[str, Known], present: Present, index: Index, memory: int,
        lease: Lease | None,
    ) -> None:  # fmt: skip
        """known: by path.  memory: bytes.  lease: None for a dry run, which puts nothing."""
        small = inlined(plan)
        self._plan, self._store, self._present, self._index, self._lease = plan, store, present, index, lease
        self._files = [_File(f, known[f.file.path], inlined=f.file.path in small) for f in plan.files]
        self._memory, self._budget = memory, ByteBudget(0)
        self._result = Sent()
        self._claimed: set[str] = set()
        self._broken: dict[str, BuilderError] = {}  # by path: the source's faults; they stop everything
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self, engine: Engine, progress: Progress, title: str) -> Sent:
        """Everything stored, or, in a dry run, known. Raises all faults together."""
        # More than a target's worth of data for each task would only wait.
        self._budget = ByteBudget(min(int(self._memory / SPARE), engine.concurrency * self._plan.chunk_bytes))
        faults: list[tuple[Fault, BuilderError]] = []
        task = progress.add(title, self._plan.snapshot.size)
        try:
            # The map is closed before anything else: no task may outlive the files that it reads.
            with (
                ThreadPoolExecutor(engine.concurrency, thread_name_prefix="file-hash") as hashing,
                contextlib.closing(engine.map(self._work, self._pieces(hashing))) as results,  # type: ignore[type-var]
            ):
                for piece, result in results:
                    if isinstance(result, BuilderError):
                        faults.append((piece.fault(result), result))
                    else:
                        piece.file.chunks[piece.index] = result
                    progress.advance(task, piece.size)
        finally:
            for file in self._files:
                file.close()
        if self._broken or faults:
            self._forget_wrong()
            progress.done(task, "failed")
            raise self._error(faults)
        done = self._collect()
        verb = "sent" if self._lease else "to send"
        progress.done(task, f"{len(done.sent)} chunks {verb}, {len(done.reused)} there")
        return done

    def _pieces(self, hashing: ThreadPoolExecutor) -> Iterator[_Piece]:
        """Every piece of every file in order, its memory taken. Ends early once the store or the source fails."""
        for file in self._files:
            if not file.plan.pieces:
                self._empty(file)
            elif file.needs_whole:
                file.whole = WholeHash(hashing, len(file.plan.pieces), lambda sha256, file=file: self._hashed(file, sha256))  # type: ignore[misc]
            elif file.sha256:
                file.end()
            for index, place in enumerate(file.plan.pieces):
                if self._stop.is_set():
                    return
                known = file.known.chunks.get(place)
                size = place[1] if self._may_read(file, known) else 0
                yield _Piece(file, index, known, Held(self._budget, size))

    def _may_read(self, file: _File, known: Chunk | None) -> bool:
        """Whether the piece's bytes may be needed, as far as can be told without asking the store."""
        return known is None or bool(file.whole) or file.inlined or not self._present.surely_has(known)

    def _empty(self, file: _File) -> None:
        """A file without bytes is only looked at: it must still be there, and empty."""
        try:
            file.read(0, 0, Held(self._budget, 0))
            file.sha256 = hashlib.sha256().hexdigest()
            file.end()
            self._piece_done(file)
        except BuilderError as exc:
            self._source_failed(file, exc)

    def _work(self, piece: _Piece) -> Chunk:
        try:
            return self._one(piece)
        except BaseException as exc:
            if piece.file.whole:
                piece.file.whole.give_up()
            if not isinstance(exc, IntegrityError):
                self._stop.set()
            raise
        finally:
            piece.held.release()

    def _one(self, piece: _Piece) -> Chunk:
        file, chunk = piece.file, piece.known
        mine, there = self._look(chunk) if chunk else (False, False)
        if chunk is None or file.whole or file.inlined or (mine and not there and self._lease):
            try:
                chunk = self._read(piece, there=there, unproven=mine and not there)
            except BuilderError as exc:
                raise self._source_failed(file, exc) from exc
            if piece.known is None:
                mine, there = self._look(chunk)
        self._piece_done(file, chunk)
        if mine:
            self._send(chunk, piece.held.data, there=there)
        if piece.known is None:
            self._index.add_chunk(file.plan.file.identity, chunk)
        return chunk

    def _look(self, chunk: Chunk) -> tuple[bool, bool]:
        """(no other piece of this run has the same bytes and came first, the chunk is in the store)."""
        with self._lock:
            mine = chunk.sha256 not in self._claimed
            self._claimed.add(chunk.sha256)
        return mine, mine and self._present.has(chunk.sha256, chunk.size)

    def _read(self, piece: _Piece, *, there: bool, unproven: bool) -> Chunk:
        """The piece's bytes into its place, and from there to all who need them; its digests.

        there: the store has it.  unproven: what the index says of it must hold, because it is about to be sent.
        """
        file, known = piece.file, piece.known
        distant = known is not None and there and not isinstance(file.plan.file, LocalFile)
        body = self._from_store(known) if known is not None and distant else None
        damaged = distant and body is None
        if body is None:
            body = file.read(piece.offset, piece.size, piece.held)
        piece.held.data = body
        with self._lock:
            self._result.read_bytes += piece.size
        hashed = known is None or unproven or damaged  # else the CRC alone: those bytes go nowhere but into the file's hash
        sha256 = sha256_hex(body) if hashed or known is None else known.sha256
        chunk = Chunk(sha256, piece.offset, piece.size, crc64nvme_hex(body))
        if known is not None and chunk != known:
            self._index.forget(file.plan.file.identity)
            raise changed(file.plan.file, "its bytes are others than an earlier push read, under the same time stamps")
        if damaged and self._lease:
            self._store.replace(chunk.key, body, sha256=chunk.sha256, crc64nvme=chunk.crc64nvme)
        if file.inlined:
            file.parts[piece.index] = bytes(body)
        if file.whole:
            file.whole.feed(piece.index, piece.held.hold())
        return chunk

    def _from_store(self, known: Chunk) -> Buffer | None:
        """A chunk that an earlier run stored, or None where it is no longer what it should be."""
        body = self._store.get(known.key, known.size)
        return body if body is not None and sha256_hex(body) == known.sha256 else None

    def _send(self, chunk: Chunk, data: Buffer, *, there: bool) -> None:
        if not there and self._lease:
            self._lease.require()
            self._store.put(chunk.key, data, sha256=chunk.sha256, crc64nvme=chunk.crc64nvme, absent=True)
        with self._lock:
            (self._result.reused if there else self._result.sent)[chunk.sha256] = chunk.size

    def _piece_done(self, file: _File, chunk: Chunk | None = None) -> None:
        """One piece of the file less to come, whether or not it was read."""
        if chunk is not None and len(file.plan.pieces) == 1 and not file.sha256:
            file.sha256 = chunk.sha256
            file.end()
        try:
            last = file.piece_done()
        except BuilderError as exc:
            raise self._source_failed(file, exc) from exc
        if last and file.end():
            self._finish(file)

    def _hashed(self, file: _File, sha256: str) -> None:
        file.sha256 = sha256
        if file.end():
            self._finish(file)

    def _finish(self, file: _File) -> None:
        """All of the file is read, or known, and it is the file of the snapshot; is it what its origin says?"""
        if error := not_as_published(file.plan.file, file.sha256):
            self._source_failed(file, error)
        elif not file.known.sha256:
            self._index.add_whole(file.plan.file.identity, file.sha256)

    def _source_failed(self, file: _File, error: BuilderError) -> BuilderError:
        with self._lock:
            self._broken.setdefault(file.plan.file.path, error)
        self._stop.set()
        return error

    def _forget_wrong(self) -> None:
        """What the index learned of files that were not what they should be; at the end, when no task adds to it any more.

        Else the next push would take the wrong pieces of a remote file from the store, where this one has put them.
        """
        for file in self._files:
            if isinstance(self._broken.get(file.plan.file.path), IntegrityError):
                self._index.forget(file.plan.file.identity)

    def _collect(self) -> Sent:
        done = self._result
        for file in self._files:
            path = file.plan.file.path
            done.chunks[path] = [file.chunks[i] for i in range(len(file.plan.pieces))]
            done.sha256[path] = file.sha256
            if file.inlined:
                done.small[path] = b"".join(file.parts[i] for i in range(len(file.plan.pieces)))
        done.peak_bytes = self._budget.peak
        return done

    def _error(self, faults: list[tuple[Fault, BuilderError]]) -> BuilderError:
        """What stopped the push: the source's fault; else every chunk that is wrong by name; a failing store in one line."""
        if self._broken:
            return next(iter(self._broken.values()))
        return unstored(self._store, self._plan, faults)


def fault(plan: FilePlan, offset: int, size: int, error: BuilderError) -> Fault:
    """Why the piece of a file could not be stored."""
    start, end = offset, offset + size
    names, path = plan.tensors_in(start, end), plan.file.path
    key = str(error.where.get("object", error.where.get("key", "")))
    expected, found = error.where.get("expected"), error.where.get("found")
    if expected is None or found is None:
        return Fault(key, path, names, start, end, "stored", without_key(error.message, key))
    return Fault(key, path, names, start, end, f"{expected} bytes", f"{found} bytes")


def unstored(store: Store, plan: ChunkPlan, faults: list[tuple[Fault, BuilderError]]) -> BuilderError:
    """One error for all: every chunk that is wrong by name; a failing store in one line."""
    wrong = [(fault, error) for fault, error in faults if isinstance(error, IntegrityError)]
    if not wrong:
        return refused([error for _, error in faults])
    if len(faults) == 1:
        return wrong[0][1]
    what = f"{store.url}: {len(wrong)} of {plan.chunks} chunks could not be stored"
    if others := [error for _, error in faults if not isinstance(error, IntegrityError)]:
        what += f"; then {refused(others).message}"
    return failure(what, wrong)


def not_as_published(file: ModelFile, sha256: str) -> IntegrityError | None:
    """Why the file is not what its origin says, or None."""
    if not file.sha256 or sha256 == file.sha256:
        return None
    mend = f"delete {file.at} and download it again" if isinstance(file, LocalFile) else f"push again: {file.at} came altered"
    return IntegrityError(
        f"{printable(file.path)}: sha256 {sha256}, but its origin says {file.sha256}",
        hint=mend,
        where={"file": file.path, "expected": file.sha256, "found": sha256},
    )
