"""Images made by hand: layers as dictionaries of files, in each form that an archive of an image has."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backports import zstd

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "+zstd": lambda data: zstd.compress(data, 1),
}
MEDIA = "application/vnd.oci.image.layer.v1.tar"
Files = dict[str, bytes]


def layer(files: Files, *, folders: Sequence[str] = (), links: dict[str, str] | None = None) -> bytes:
    """A tar. links: name to target, symbolic."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in folders:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Layout:
    """The blobs of an OCI layout, on their way into a tar or a folder."""

    def __init__(self) -> None:
        self.files: Files = {}

    def add(self, data: bytes | dict[str, Any], media: str = "") -> dict[str, Any]:
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        digest = hashlib.sha256(data).hexdigest()
        self.files[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)} | ({"mediaType": media} if media else {})

    def image(self, tars: Sequence[bytes], *, config: dict[str, Any] | None = None, packed: str = "+gzip",
              media: str = "", platform: str = "linux/amd64") -> dict[str, Any]:  # fmt: skip
        """An image manifest. config: on top of the usual one."""
        rows = [self.add(PACKERS[packed](tar), media or MEDIA + packed) for tar in tars]
        history = [{"created_by": f"COPY step{i} / # buildkit"} for i, _ in enumerate(tars)]
        system, _, machine = platform.partition("/")
        ids = ["sha256:" + hashlib.sha256(tar).hexdigest() for tar in tars]
        usual = {"config": {}, "history": history, "os": system, "architecture": machine, "rootfs": {"diff_ids": ids}}
        described = self.add(usual | (config or {}))
        return self.add({"config": described, "layers": rows})

    def index(self, *entries: dict[str, Any]) -> None:
        self.files["index.json"] = json.dumps({"manifests": list(entries)}).encode()

    def to_tar(self, path: Path) -> Path:
        path.write_bytes(layer(self.files))
        return path

    def to_folder(self, folder: Path) -> Path:
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder


def image(
    path: Path, *layers: Files | bytes, config: dict[str, Any] | None = None, packed: str = "+gzip", form: str = "oci"
) -> Path:
    """An image with these layers. form: oci (a tar), folder, docker (`docker save` before 25) or attested (one index deeper,
    beside a provenance attestation and a platform that is not there)."""
    tars = [one if isinstance(one, bytes) else layer(one) for one in layers]
    if form == "docker":
        return _docker(path, tars, config or {})
    layout = Layout()
    manifest = layout.image(tars, config=config, packed=packed)
    if form == "attested":
        statement = layout.add(b'{"predicateType": "provenance"}', "application/vnd.in-toto+json")
        other = layout.add({"config": layout.add({}), "layers": [statement]})
        other |= {"platform": {"architecture": "unknown", "os": "unknown"}}
        absent = {"digest": "sha256:" + "0" * 64, "platform": {"architecture": "arm64", "os": "linux"}}
        manifest = layout.add({"manifests": [other, absent, manifest]})
    layout.index(manifest)
    return layout.to_folder(path) if form == "folder" else layout.to_tar(path)


def _docker(path: Path, tars: Sequence[bytes], config: dict[str, Any]) -> Path:
    """Plain layers in folders of their own, manifest.json, no digests of what lies there."""
    ids = [hashlib.sha256(tar).hexdigest() for tar in tars]
    history = [{"created_by": f"COPY step{i} / # buildkit"} for i, _ in enumerate(tars)]
    usual = {"config": {}, "history": history, "os": "linux", "architecture": "amd64"}
    usual |= {"rootfs": {"diff_ids": [f"sha256:{one}" for one in ids]}} | config
    files = {f"{number}{one[:8]}/layer.tar": tar for number, (one, tar) in enumerate(zip(ids, tars, strict=True))}
    names = list(files)
    files["config.json"] = json.dumps(usual).encode()
    files["manifest.json"] = json.dumps([{"Config": "config.json", "Layers": names, "RepoTags": ["r/m:1"]}]).encode()
    path.write_bytes(layer(files))
    return path
