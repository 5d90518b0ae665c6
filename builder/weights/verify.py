"""A model in a store against its manifest: every chunk read and hashed, or by the store's own word alone."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from builder.engines.base import Engine
from builder.errors import IntegrityError
from builder.format.manifest import Chunk, File, Manifest
from builder.progress import NoProgress, Progress
from builder.stores.base import Reader, Store
from builder.transfer.checksum import Digests, file_crc64
from builder.transfer.faults import Fault, chunk_fault, failure
from builder.transfer.manifests import read_manifest
from builder.transfer.source import public
from builder.units import count
from builder.weights.audit import Audit, Wrong
from builder.weights.work import each

Place = tuple[File, Chunk]
Check = Callable[[Chunk], tuple[str, str] | str]
"""What is wrong with a stored chunk: (expected, found); or how it was checked: "digest" or "size"."""


@dataclass(frozen=True)
class VerifyReport:
    """What was found. chunks, bytes: distinct ones.  by: "read", or "head" for the store's own word.

    endpoint: the server that was asked, "" for AWS and for a folder.
    by_size: chunks of which the store told the size only (a remote check on a store that keeps no digest): they may hold
    anything. by_digest: the others that are right, compared by a digest.
    faults: every one, at every place of the model that the object goes to.
    """

    store: str
    name: str
    digest: str
    files: int
    chunks: int
    bytes: int
    by: str
    endpoint: str
    by_digest: int
    by_size: int
    seconds: float
    faults: tuple[Fault, ...] = ()
    manifest: Manifest | None = field(default=None, repr=False, compare=False)
    mend: str = field(default="", repr=False, compare=False)  # the command that repairs it; not part of the JSON form

    @property
    def ok(self) -> bool:
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        plain = {k: v for k, v in vars(self).items() if k not in ("manifest", "mend", "faults")}
        return {**plain, "ok": self.ok, "faults": [f.to_json() for f in self.faults]}

    def error(self) -> IntegrityError:
        """The faults as one error; `where` is the whole report."""
        bad = len({f.object for f in self.faults})
        what = f"{self.store}: {bad} of {self.chunks} chunks of {self.name} are bad"
        found = failure(what, [(f, IntegrityError(f.found)) for f in self.faults])
        return IntegrityError(found.message, hint=f"run `{self.mend}`", where=self.to_json())


def verify(
    store: Store, ref: str = "", *, engine: Engine, remote: bool = False, progress: Progress | None = None
) -> VerifyReport:
    """Check every chunk of the model that `ref` names (see transfer.manifests.resolve).

    remote: by HEAD requests only. Where the store tells sha256 or CRC64NVME of the object, that is compared, else only
    the size. It proves what arrived at upload, not what the disks hold now, and is worth what the server's word is: AWS
    computes what it tells; rclone 1.75 repeats, until it restarts, what the uploader claimed.
    Raises IntegrityError for a missing or damaged manifest, RemoteError and CapabilityError where the store cannot be
    read. Bad chunks are not raised: they are the report's faults.
    """
    start = time.monotonic()
    manifest = read_manifest(Reader(store), ref)
    places: dict[str, list[Place]] = {}
    for file, chunk in manifest.chunks():
        places.setdefault(chunk.sha256, []).append((file, chunk))
    by_size, faults = _check_all(store, list(places.values()), engine, remote, progress or NoProgress())
    faults += [fault for file in manifest.files if (fault := _whole_file(file))]
    return VerifyReport(
        store=store.url,
        name=manifest.name,
        digest=manifest.digest,
        files=len(manifest.files),
        chunks=len(places),
        bytes=sum(p[0][1].size for p in places.values()),
        by="head" if remote else "read",
        endpoint=public(getattr(store, "endpoint_url", None) or ""),
        by_digest=len(places) - by_size - len({fault.object for fault in faults if fault.object}),
        by_size=by_size,
        seconds=time.monotonic() - start,
        faults=tuple(faults),
        manifest=manifest,
        mend=_mend(store, ref or manifest.name, manifest),
    )


def _mend(store: Store, ref: str, manifest: Manifest) -> str:
    """The repair command. Its SOURCE is known only where the model came from a hub: a manifest keeps no local paths."""
    words = ["builder", "weights", "repair", ref, "--from"]
    if manifest.source.startswith("hf://"):
        words += [manifest.source, *(["--revision", manifest.revision] if manifest.revision else [])]
    else:
        words.append("SOURCE")
    words += ["--store", store.url]
    if endpoint := getattr(store, "endpoint_url", None):
        words += ["--endpoint-url", public(endpoint)]
    return shlex.join(words)


def _check_all(
    store: Store, places: list[list[Place]], engine: Engine, remote: bool, progress: Progress
) -> tuple[int, list[Fault]]:
    """(chunks of which only the size is known, every fault in the order of need)."""
    check: Check = _by_head(store) if remote else _by_reading(store, engine.concurrency)
    task = progress.add("verify", sum(p[0][1].size for p in places))
    faults: dict[str, list[Fault]] = {}
    by_size = 0
    for place, result in each(engine, lambda place: check(place[0][1]), places):
        chunk = place[0][1]
        if isinstance(result, tuple):
            faults[chunk.sha256] = [chunk_fault(f, c, result[1], result[0]) for f, c in place]
        else:
            by_size += result == "size"
        progress.advance(task, chunk.size)
    progress.done(task, count(sum(map(len, faults.values())), "fault") if faults else "")
    return by_size, [fault for place in places for fault in faults.get(place[0][1].sha256, [])]


def _by_reading(store: Store, workers: int) -> Check:
    audit = Audit(store, workers)

    def check(chunk: Chunk) -> tuple[str, str] | str:
        return audit.wrong(chunk.key, chunk.size, lambda found: _differs(chunk, found)) or "digest"

    return check


def _differs(chunk: Chunk, found: Digests) -> Wrong:
    if found.size != chunk.size:
        return f"{chunk.size} bytes", f"{found.size} bytes"
    if found.sha256 != chunk.sha256:
        return f"sha256 {chunk.sha256}", f"sha256 {found.sha256}"
    if found.crc64nvme != chunk.crc64nvme:
        return f"crc64nvme {chunk.crc64nvme}", f"crc64nvme {found.crc64nvme}"
    return None


def _by_head(store: Store) -> Check:
    def check(chunk: Chunk) -> tuple[str, str] | str:
        found = store.stat(chunk.key)
        if found is None:
            return f"{chunk.size} bytes", "no object"
        if found.size != chunk.size:
            return f"{chunk.size} bytes", f"{found.size} bytes"
        if found.sha256 and found.sha256 != chunk.sha256:
            return f"sha256 {chunk.sha256}", f"sha256 {found.sha256}"
        if found.crc64nvme and found.crc64nvme != chunk.crc64nvme:
            return f"crc64nvme {chunk.crc64nvme}", f"crc64nvme {found.crc64nvme}"
        return "digest" if found.sha256 or found.crc64nvme else "size"

    return check


def _whole_file(file: File) -> Fault | None:
    """The file's CRC against those of its chunks: a manifest that disagrees with itself."""
    found = file_crc64(file.chunks)
    if found == file.crc64nvme:
        return None
    return Fault("", file.path, (), 0, file.size, f"crc64nvme {file.crc64nvme}", f"crc64nvme {found} from its chunks")
