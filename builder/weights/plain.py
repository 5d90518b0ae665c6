"""The original files beside the chunks, for tools that know neither chunks nor manifest (vLLM, run:ai, KServe).

    plain/<name>/<path>      the files of one version and nothing else, so that a tool may take the whole prefix
    marks/plain/<name>       digest of that version's manifest: removed first, written last

One version per name: a newer push replaces the files one by one, so a reader must look at the mark before and after, or
read the chunks, which never change.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

from builder.engines.base import Engine
from builder.errors import IntegrityError
from builder.format.manifest import File, Manifest, is_digest
from builder.models.source import ModelFile, ModelSnapshot, Stream
from builder.progress import NoProgress, Progress
from builder.stores.base import Reader, Store, Stored
from builder.transfer.checksum import crc64nvme_hex, sha256_hex
from builder.transfer.faults import Fault, failure
from builder.transfer.manifests import REF_BYTES, read_manifest
from builder.units import count
from builder.weights.audit import Audit
from builder.weights.work import each


@dataclass(frozen=True)
class PlainReport:
    """What was found. by_digest: files whose sha256 or CRC64NVME the store itself told; by_read: files that were read;
    by_size: files of which only the size was compared (a remote check of a store that keeps no digest).
    """

    store: str
    prefix: str
    name: str
    digest: str
    files: int
    bytes: int
    by_digest: int
    by_read: int
    by_size: int
    seconds: float
    faults: tuple[Fault, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "ok": self.ok, "faults": [f.to_json() for f in self.faults]}

    def error(self) -> IntegrityError:
        """The faults as one error; `where` is the whole report."""
        what = f"{self.store}/{self.prefix}: {count(len(self.faults), 'fault')}"
        found = failure(what, [(f, IntegrityError(f.found)) for f in self.faults])
        return IntegrityError(found.message, hint="run `builder weights push --plain` again", where=self.to_json())


def publish_plain(manifest: Manifest, snapshot: ModelSnapshot, store: Store, progress: Progress) -> int:
    """Put every file under plain/<name>/ and remove all else there; returns the bytes sent, 0 where nothing was missing.

    A file whose CRC64NVME the store tells, and which is right, is not sent again.
    Raises IntegrityError if a file changed since it was pushed, or the store received other bytes than were read.
    """
    mark = _mark(manifest.name)
    body = f"{manifest.digest}\n".encode()
    if store.size(mark) == len(body) and store.get(mark, len(body)) == body:
        return 0
    store.delete(mark)
    prefix, sent = _prefix(manifest.name), 0
    task = progress.add(f"publish {prefix}", manifest.size)
    for file in snapshot.files:
        expected = manifest.file(file.path)
        there = store.stat(prefix + file.path)
        if not (there and there.crc64nvme and _differs(expected, there) is None):
            _upload(file, expected, prefix + file.path, store)
            sent += file.size
        progress.advance(task, file.size)
    for key, _ in list(store.keys(prefix)):  # of an earlier version: a tool that takes *.safetensors would load them too
        if key.removeprefix(prefix) not in {f.path for f in manifest.files}:
            store.delete(key)
    store.replace(mark, body, sha256=sha256_hex(body), crc64nvme=crc64nvme_hex(body))
    progress.done(task)
    return sent


def verify_plain(
    store: Store, ref: str = "", *, engine: Engine, remote: bool = False, progress: Progress | None = None
) -> PlainReport:
    """The files under plain/<name>/ against the manifest that `ref` leads to: each one right, and nothing else there.

    By the store's own digest where it tells one of the whole object; else the file is read, or with `remote` only its size
    compared. Raises IntegrityError for a missing or damaged manifest, RemoteError and CapabilityError where the store
    cannot be read. What is wrong with the files is not raised: it is the report's faults.
    """
    start = time.monotonic()
    progress = progress or NoProgress()
    manifest = read_manifest(Reader(store), ref)
    prefix = _prefix(manifest.name)
    faults = _marked(store, manifest)
    how = {"digest": 0, "read": 0, "size": 0}
    task = progress.add(f"verify {prefix}", manifest.size)
    audit = None if remote else Audit(store, engine.concurrency)
    for file, result in each(engine, lambda file: _check(store, audit, prefix + file.path, file), manifest.files):
        if isinstance(result, Fault):
            faults.append(result)
        else:
            how[result] += 1
        progress.advance(task, file.size)
    progress.done(task, count(len(faults), "fault") if faults else "")
    known = {f.path for f in manifest.files}
    for key, size in store.keys(prefix):
        if key.removeprefix(prefix) not in known:
            faults.append(Fault(key, key.removeprefix(prefix), (), 0, size, "no such file", f"{size} bytes"))
    return PlainReport(
        store=store.url,
        prefix=prefix,
        name=manifest.name,
        digest=manifest.digest,
        files=len(manifest.files),
        bytes=manifest.size,
        by_digest=how["digest"],
        by_read=how["read"],
        by_size=how["size"],
        seconds=time.monotonic() - start,
        faults=tuple(sorted(faults, key=lambda f: (f.path, f.object))),
    )


def _prefix(name: str) -> str:
    return f"plain/{name}/"


def _mark(name: str) -> str:
    return f"marks/plain/{name}"


def _marked(store: Store, manifest: Manifest) -> list[Fault]:
    """A fault where the mark names another version, or is missing: a push is under way, or was killed."""
    key = _mark(manifest.name)
    body = store.get(key, REF_BYTES)
    said = bytes(body).decode("ascii", "replace").strip() if body is not None else ""
    if said == manifest.digest:
        return []
    found = said if is_digest(said) else "no mark"
    return [Fault(key, "", (), 0, 0, manifest.digest, found)]


def _upload(file: ModelFile, expected: File, key: str, store: Store) -> None:
    try:
        with file.open() as reading:
            store.upload(key, io.BufferedReader(Stream(reading, file.size)), file.size)
            reading.require_unchanged()
    except IntegrityError:
        store.delete(key)
        raise
    found = store.stat(key)
    wrong = ("", "no object") if found is None else _differs(expected, found)
    if wrong:
        store.delete(key)
        what = f"the store has {wrong[1]}, expected {wrong[0] or 'it there'}"
        raise IntegrityError(f"{store.url}/{key}: {what}", hint="push again", where={"object": key, "file": file.path})


def _differs(expected: File, found: Stored) -> tuple[str, str] | None:
    """(expected, found) of the first thing in which the store's word differs from the manifest's."""
    if found.size != expected.size:
        return f"{expected.size} bytes", f"{found.size} bytes"
    if found.sha256 and found.sha256 != expected.sha256:
        return f"sha256 {expected.sha256}", f"sha256 {found.sha256}"
    if found.crc64nvme and found.crc64nvme != expected.crc64nvme:
        return f"crc64nvme {expected.crc64nvme}", f"crc64nvme {found.crc64nvme}"
    return None


def _check(store: Store, audit: Audit | None, key: str, file: File) -> Fault | str:
    """What is wrong with the file, or how it was found right: "digest", "read" or "size". audit: None to read nothing."""
    found = store.stat(key)
    wrong = (f"{file.size} bytes", "no object") if found is None else _differs(file, found)
    how = "digest" if found and (found.sha256 or found.crc64nvme) else "read" if audit else "size"
    if wrong is None and how == "read" and audit:
        wrong = audit.wrong(key, file.size, lambda read: _differs(file, Stored(read.size, read.sha256, read.crc64nvme)))
    return Fault(key, file.path, (), 0, file.size, *wrong) if wrong else how
