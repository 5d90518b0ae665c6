"""The original files beside the chunks, for tools that know neither chunks nor manifest.

    plain/<name>/<path>                the files
    plain/<name>/.builder-manifest     digest of the manifest whose files they are: removed first, written last

One version per name: a newer push replaces the files one by one, so a reader must look at the mark before and after, or
read the chunks, which never change.
"""

from __future__ import annotations

import io

from builder.errors import IntegrityError
from builder.format.manifest import File, Manifest
from builder.models.source import ModelFile, ModelSnapshot, Stream
from builder.progress import Progress
from builder.stores.base import Store
from builder.transfer.checksum import crc64nvme_hex, sha256_hex

MARK = ".builder-manifest"


def publish_plain(manifest: Manifest, snapshot: ModelSnapshot, store: Store, progress: Progress) -> int:
    """Put every file under plain/<name>/; returns the bytes sent, 0 where this version is there already.

    Raises IntegrityError if a file changed since it was pushed, or the store received other bytes than were read.
    """
    mark = f"plain/{manifest.name}/{MARK}"
    body = f"{manifest.digest}\n".encode()
    if store.size(mark) == len(body) and store.get(mark, len(body)) == body:
        return 0
    store.delete(mark)
    task = progress.add(f"publish plain/{manifest.name}", manifest.size)
    for file in snapshot.files:
        _upload(file, manifest.file(file.path), f"plain/{manifest.name}/{file.path}", store)
        progress.advance(task, file.size)
    store.replace(mark, body, sha256=sha256_hex(body), crc64nvme=crc64nvme_hex(body))
    progress.done(task)
    return manifest.size


def _upload(file: ModelFile, expected: File, key: str, store: Store) -> None:
    try:
        with file.open() as reading:
            store.upload(key, io.BufferedReader(Stream(reading, file.size)), file.size)
            reading.require_unchanged()
    except IntegrityError:
        store.delete(key)
        raise
    found = store.stat(key)
    wrong = found is None or found.size != file.size or (found.crc64nvme and found.crc64nvme != expected.crc64nvme)
    if wrong:
        store.delete(key)
        what = f"the store has {found}, expected {file.size} bytes with crc64nvme {expected.crc64nvme}"
        raise IntegrityError(f"{store.url}/{key}: {what}", hint="push again", where={"object": key, "file": file.path})
