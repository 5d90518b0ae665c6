"""Small OCI images of any content: layers as lists of tar members, packed in any way, with names and digests that are right."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.oci import blob

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACK = {"plain": lambda raw: raw, "gzip": lambda raw: gzip.compress(raw, mtime=0), "zstd": zstd.compress}
Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, body: str | bytes = b"") -> Member:
    info = tarfile.TarInfo(name)
    data = body.encode() if isinstance(body, str) else body
    info.size = len(data)
    return info, data


def folder(name: str) -> Member:
    return _special(name, tarfile.DIRTYPE)


def link(name: str, target: str) -> Member:
    return _special(name, tarfile.SYMTYPE, target)


def hard(name: str, target: str) -> Member:
    return _special(name, tarfile.LNKTYPE, target)


def files(bodies: Mapping[str, str | bytes]) -> list[Member]:
    return [file(name, body) for name, body in bodies.items()]


def layer(members: Sequence[Member]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, body in members:
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


def image(
    place: Path, *layers: Sequence[Member] | bytes, pack: str = "gzip", config: Mapping[str, Any] | None = None, name: str = "",
    attested: bool = False, **settings: Any,
) -> str:  # fmt: skip
    """An OCI layout in the new folder `place`. Returns the digest that its index names. layers: members, or a tar.

    config: the part that a container starts with. settings: of the whole configuration, such as created. attested: one index
    deeper, beside an attestation, as BuildKit writes it.
    """
    place.mkdir(parents=True)
    rows = [
        blob(place, PACK[pack](one if isinstance(one, bytes) else layer(one)), f"application/vnd.oci.image.layer.v1.tar+{pack}")
        for one in layers
    ]
    whole = {"os": "linux", "architecture": "amd64", "created": "2026-01-02T03:04:05.123456789Z", "config": dict(config or {})}
    described = blob(place, json.dumps(whole | settings).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described,
        "layers": rows,
    }
    entry = blob(place, json.dumps(manifest).encode(), manifest["mediaType"])
    if attested:
        other = blob(place, b"{}", manifest["mediaType"]) | {"platform": {"architecture": "unknown", "os": "unknown"}}
        kind = "application/vnd.oci.image.index.v1+json"
        index = {"schemaVersion": 2, "mediaType": kind, "manifests": [other, entry | {"platform": {"architecture": "amd64"}}]}
        entry = blob(place, json.dumps(index).encode(), kind)
    entry["annotations"] = {"io.containerd.image.name": name} if name else {}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(entry["digest"])


def _special(name: str, kind: bytes, target: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""
