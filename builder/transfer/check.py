"""A restored folder against its manifest: every byte read and compared; and repair of what differs.

Repair writes into the files themselves: a copy of a 140 GB model to mend one chunk would need another 140 GB. So that no
reader takes a half-mended folder for a model, the marker is removed first and written last, and a chunk is verified
before its bytes are written. A repair that dies leaves a folder without a marker, which a second repair finishes. An
engine that has the files mapped meanwhile sees a bad chunk become a good one, nothing else: good bytes are not touched.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, ConfigError, IntegrityError, RemoteError
from builder.format.manifest import MAX_MANIFEST_BYTES, RESERVED, Chunk, File, Manifest, parse
from builder.format.volume import JOURNAL, MANIFEST, MARKER, marker_digest
from builder.transfer.buffers import MEMORY_BYTES, WINDOW_BYTES, Buffers
from builder.transfer.claim import disk_errors, locked, need_space, sync, write_synced
from builder.transfer.disk import read_file
from builder.transfer.faults import Fault, chunk_fault, failure
from builder.transfer.fetch import digest_chunk, fetch, reserve, writer
from builder.transfer.manifests import read_manifest
from builder.transfer.progress import Progress, Silent
from builder.transfer.retry import RetryingSource, retrying
from builder.transfer.source import Source
from builder.transfer.workers import each

Place = tuple[File, Chunk]


@dataclass(frozen=True)
class RepairReport:
    """What a repair did.

    faults: found before.  left: files that belong to no model; repair deletes nothing, an engine may still load them.
    fetched_bytes, fetched_chunks: read from the source.
    """

    folder: str
    digest: str
    faults: tuple[Fault, ...]
    left: tuple[Fault, ...]
    fetched_bytes: int
    fetched_chunks: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Findings:
    """faults: in the order of the manifest.  bad: places whose bytes are wrong or absent.  extra: files of no model."""

    faults: list[Fault] = field(default_factory=list)
    bad: list[Place] = field(default_factory=list)
    extra: list[Fault] = field(default_factory=list)


def check_folder(
    folder: Path, *, deep: bool = False, workers: int = 8, memory: int = MEMORY_BYTES, progress: Progress | None = None
) -> list[Fault]:
    """Everything that is wrong with a restored folder; empty if it is the model its marker names, byte for byte.

    deep: also each chunk's sha256 (2 GB/s per core instead of 20): needed only against someone who forges checksums.
    memory: bytes of chunk data in memory at most, or one window.
    Raises ConfigError if `folder` was never restored; CapabilityError if a file may not be read.
    """
    with disk_errors(folder):
        faults, manifest = _own_manifest(folder)
        if manifest is None:
            return faults
        found = _scan(folder, manifest, deep, Buffers(memory, most=workers), progress or Silent())
        return faults + found.faults + found.extra


def local_manifest(folder: Path) -> Manifest:
    """The manifest beside a restored model. Raises IntegrityError if it is damaged or not what the marker names."""
    with disk_errors(folder):
        faults, manifest = _own_manifest(folder)
    if manifest is None or faults:
        raise IntegrityError(
            f"{folder}: {faults[0]}",
            hint=f"run `builder weights repair --local {folder} --store URL`",
            where={"file": str(folder / faults[0].path)},
        )
    return manifest


def repair_folder(
    folder: Path,
    source: Source,
    *,
    deep: bool = False,
    workers: int = 8,
    memory: int = MEMORY_BYTES,
    progress: Progress | None = None,
) -> RepairReport:
    """The folder made whole: only bad or missing chunks are fetched, each verified before it is written.

    Raises IntegrityError if the store's copies are bad too, RemoteError, CapabilityError (disk full); the folder then has
    no marker, and the next repair goes on. ConfigError if `folder` was never restored.
    """
    progress, source = progress or Silent(), retrying(source)
    with disk_errors(folder), locked(folder, progress):
        faults, manifest = _own_manifest(folder)
        if manifest is None:
            manifest = _fetch_manifest(folder, source)
        found = _scan(folder, manifest, deep, Buffers(memory, most=workers), progress)
        faults = faults + found.faults
        fetched = (0, 0)
        if faults:
            largest = max((chunk.size for _, chunk in found.bad), default=0)
            buffers = Buffers(memory, most=workers, size=WINDOW_BYTES + largest)
            fetched = _mend(folder, manifest, found.bad, source, buffers, progress)
        return RepairReport(str(folder), manifest.digest, tuple(faults), tuple(found.extra), *fetched)


def _own_manifest(folder: Path) -> tuple[list[Fault], Manifest | None]:
    """Faults of marker and manifest; the manifest unless it is damaged or not what the marker names."""
    if not (folder / RESERVED).is_dir():
        raise ConfigError(f"{folder}: not a restored model (no {RESERVED}/)", hint="run `builder weights pull`")
    marker = marker_digest(folder)
    faults = []
    if marker is None:
        faults.append(Fault("", MARKER, (), 0, 0, "the manifest's digest", "none: never finished, or damaged"))
    try:
        body = read_file(folder / MANIFEST, limit=MAX_MANIFEST_BYTES)
        return faults, parse(bytes(body), at=str(folder / MANIFEST), digest=marker or "")
    except FileNotFoundError:
        found = "no such file"
    except IntegrityError as exc:
        found = exc.message.removeprefix(f"{folder / MANIFEST}: ")
    return [*faults, Fault("", MANIFEST, (), 0, 0, marker or "a manifest", found)], None


def _fetch_manifest(folder: Path, source: Source) -> Manifest:
    digest = marker_digest(folder)
    if digest is None:
        raise IntegrityError(
            f"{folder}: neither {MARKER} nor {MANIFEST} can be read, so nothing says which model this is",
            hint="remove the folder and pull again",
            where={"file": str(folder)},
        )
    return read_manifest(source, digest)


def _scan(folder: Path, manifest: Manifest, deep: bool, buffers: Buffers, progress: Progress) -> _Findings:
    """Reads every byte; memory: the buffers."""
    found, lock = _Findings(), threading.Lock()
    task = progress.add(f"check {manifest.name}", manifest.size)
    places: list[Place] = []
    for file in manifest.files:
        fault = _shape(folder / file.path, file)
        if fault:
            found.faults.append(fault)
        if fault and not _is_file(folder / file.path):
            found.bad += [(file, chunk) for chunk in file.chunks]
            progress.advance(task, file.size)
        else:
            places += [(file, chunk) for chunk in file.chunks]

    def one(place: Place) -> None:
        file, chunk = place
        with buffers.one() as window:
            fault = _chunk_fault(folder, file, chunk, deep, window)
        if fault:
            with lock:
                found.faults.append(fault)
                found.bad.append(place)
        progress.advance(task, chunk.size)

    try:
        each(places, one, workers=buffers.count)
    finally:
        progress.done(task)
    order = {file.path: n for n, file in enumerate(manifest.files)}
    found.faults.sort(key=lambda fault: (order[fault.path], fault.object != "", fault.start))
    found.extra = list(_extra(folder, set(order)))
    return found


def _shape(path: Path, file: File) -> Fault | None:
    """A file that is missing, not a file, or of another size."""
    expected = f"{file.size} bytes"
    try:
        entry = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return Fault("", file.path, (), 0, file.size, expected, "no such file")
    if not stat.S_ISREG(entry.st_mode):
        return Fault("", file.path, (), 0, file.size, expected, "not a regular file")
    if entry.st_size != file.size:
        start, end = sorted((entry.st_size, file.size))
        return Fault("", file.path, tuple(file.tensors_in(start, end)), start, end, expected, f"{entry.st_size} bytes")
    return None


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _chunk_fault(folder: Path, file: File, chunk: Chunk, deep: bool, window: memoryview) -> Fault | None:
    try:
        digests = digest_chunk(folder / file.path, chunk, window, sha256=deep)
    except OSError as exc:  # a sector that cannot be read is a bad chunk, and can be mended like one
        if isinstance(exc, PermissionError):
            raise
        return chunk_fault(file, chunk, exc.strerror or str(exc))
    if digests.size < chunk.size:
        return chunk_fault(file, chunk, f"{digests.size} bytes", f"{chunk.size} bytes")
    if digests.crc64nvme != chunk.crc64nvme:
        return chunk_fault(file, chunk, f"crc64nvme {digests.crc64nvme}")
    if deep and digests.sha256 != chunk.sha256:
        return chunk_fault(file, chunk, f"sha256 {digests.sha256}", f"sha256 {chunk.sha256}")
    return None


def _extra(folder: Path, known: set[str]) -> Iterator[Fault]:
    known = known | {MANIFEST, MARKER, JOURNAL}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in known and (path.is_symlink() or not path.is_dir()):
            yield Fault("", name, (), 0, 0, "no such file", f"{path.lstat().st_size} bytes")


def _mend(
    folder: Path, manifest: Manifest, bad: list[Place], source: RetryingSource, buffers: Buffers, progress: Progress
) -> tuple[int, int]:
    """Marker off, chunks in, everything synced, marker on. Returns (bytes, chunks) fetched."""
    need_space(folder, sum(f.size for f in manifest.files if not _is_file(folder / f.path)))
    (folder / MARKER).unlink(missing_ok=True)
    sync(folder / RESERVED)
    write_synced(folder / MANIFEST, manifest.to_bytes())
    wanted: dict[str, list[Place]] = {}
    for file, chunk in bad:
        wanted.setdefault(chunk.sha256, []).append((file, chunk))
    for file in manifest.files:
        _make_file(folder, file)
    fetched = _refetch(folder, manifest, wanted, source, buffers, progress)
    for file in manifest.files:
        sync(folder / file.path)
    for path in {folder, *((folder / f.path).parent for f in manifest.files)}:
        sync(path)
    write_synced(folder / MARKER, f"{manifest.digest}\n".encode())
    sync(folder / RESERVED)
    return fetched


def _make_file(folder: Path, file: File) -> None:
    """A regular file of the right size; one that is there keeps its bytes."""
    path = folder / file.path
    if _shape(path, file) is None:
        return
    if path.is_symlink():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    reserve(path, file.size)


def _refetch(
    folder: Path,
    manifest: Manifest,
    wanted: dict[str, list[Place]],
    source: RetryingSource,
    buffers: Buffers,
    progress: Progress,
) -> tuple[int, int]:
    lock = threading.Lock()
    failed: list[tuple[Fault, BuilderError]] = []
    sizes: list[int] = []
    task = progress.add(f"repair {manifest.name}", sum(places[0][1].size for places in wanted.values()))

    def one(sha256: str) -> None:
        places = wanted[sha256]
        file, chunk = places[0]
        with buffers.one() as memory:
            window, body = memory[:WINDOW_BYTES], memory[WINDOW_BYTES:][: chunk.size]

            def keep(piece: memoryview, offset: int) -> None:
                body[offset : offset + len(piece)] = piece

            try:
                remote = fetch(manifest, places, source, window, keep, sha256=True)
            except (IntegrityError, RemoteError) as exc:
                with lock:
                    failed.append((chunk_fault(file, chunk, exc.message), exc))
                return
            with writer(folder, places) as write:  # only now: of what was there, most may have been right
                write(body, 0)
        with lock:
            sizes.extend([chunk.size] if remote else [])
        progress.advance(task, chunk.size)

    try:
        each([sha256 for sha256 in manifest.order if sha256 in wanted], one, workers=buffers.count)
    finally:
        progress.done(task)
    if failed:
        raise failure(f"{len(failed)} of {len(wanted)} chunks could not be mended, from {source.url}:", failed)
    return sum(sizes), len(sizes)
