"""One image of a layout as a tar of its own, for `ctr images import`."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Container
from typing import IO

from builder.errors import IntegrityError
from builder.node.layout import INDEX_TYPES, NAME_KEY, TAG_KEY, Descriptor, Layout, OciImage

_PIECE = 1 << 20


def stream(layout: Layout, image: OciImage, sink: IO[bytes], seen: Callable[[Descriptor, int], None] | None = None,
           *, without: Container[str] = ()) -> None:  # fmt: skip
    """Write the image as an OCI layout tar to `sink`, in one pass: its own index.json and only the blobs it needs.

    Blobs are copied as they are, so digests stay; a name annotation makes the importer use `image.reference`. without: digests
    of blobs that are there already. seen(blob, bytes): what has just been written. GNU headers, because ustar ends at 8 GiB.
    """
    raw = {"mediaType": image.target.media_type, "digest": image.target.digest, "size": image.target.size}
    raw["annotations"] = {NAME_KEY: image.reference, TAG_KEY: image.reference.rsplit(":", 1)[1]}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": [raw]}
    _add(sink, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
    _add(sink, "index.json", json.dumps(index).encode())
    for blob in image.blobs():
        if blob.digest in without:
            continue
        sink.write(_header(blob.member, blob.size))
        with layout.open(blob.member) as body:
            left = blob.size
            while left and (piece := body.read(min(left, _PIECE))):
                sink.write(piece)
                left -= len(piece)
                if seen:
                    seen(blob, len(piece))
        if left:
            raise IntegrityError(f"{layout.path}: {blob.digest} ends {left} bytes early", hint="export the image again")
        sink.write(bytes(-blob.size % tarfile.BLOCKSIZE))
    sink.write(bytes(2 * tarfile.BLOCKSIZE))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def _add(sink: IO[bytes], name: str, body: bytes) -> None:
    sink.write(_header(name, len(body)) + body + bytes(-len(body) % tarfile.BLOCKSIZE))
