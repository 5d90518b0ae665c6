"""Small real OCI layouts: a shell and its libraries from this machine, in two gzip layers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from builder.node.layout import host_platform

PROGRAMS = ("sh", "id", "cat", "true", "sleep")


def write_layout(folder: Path, *, name: str = "registry.example.com/llm/tiny:v1", user: str = "10001:0",
                 entrypoint: tuple[str, ...] = (), extra: bytes = b"second layer\n", plain: bool = False,
                 whiteout: bool = False, history: bool = False, arch: str = "", layers: list[bytes] | None = None,
                 diff_ids: list[str] | None = None) -> str:  # fmt: skip
    """An OCI layout in `folder`. Returns the digest of its manifest. plain: layers are not compressed.

    whiteout: the second layer removes /bin/true and replaces /opt/base.  history: an entry per layer, as buildah wants it.
    arch: of another machine.  layers: tars, or with plain whatever bytes.  diff_ids: to claim instead of the true ones.
    """
    folder.mkdir(parents=True)
    marks = {"bin/.wh.true": b"", "opt/base/.wh..wh..opq": b"", "opt/base/new": b"n"} if whiteout else {}
    layers = layers or [_shell_layer(), tar({"opt/app/data.txt": extra, **marks})]
    rows = []
    for raw in layers:
        body = raw if plain else gzip.compress(raw, 1, mtime=0)
        kind = "application/vnd.oci.image.layer.v1.tar" + ("" if plain else "+gzip")
        rows.append(blob(folder, body, kind))
    arch = arch or host_platform().split("/")[1]
    diff_ids = diff_ids or ["sha256:" + hashlib.sha256(raw).hexdigest() for raw in layers]
    inner = {"User": user, "Entrypoint": list(entrypoint), "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]}
    config = {"os": "linux", "architecture": arch, "config": inner, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    if history:
        config["history"] = [{"created_by": "test"} for _ in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(folder, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": rows,
    }
    entry = blob(folder, json.dumps(manifest).encode(), manifest["mediaType"])
    entry["annotations"] = {"io.containerd.image.name": name} if name else {}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(entry["digest"])


def blob(folder: Path, body: bytes, kind: str) -> dict[str, Any]:
    """Store `body` as a blob of the layout; returns its descriptor."""
    digest = hashlib.sha256(body).hexdigest()
    path = folder / "blobs" / "sha256" / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(body)}


def tar_layout(folder: Path, out: Path) -> Path:
    """The layout `folder` as one uncompressed .tar."""
    with tarfile.open(out, "w") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder), recursive=False)
    return out


def _shell_layer() -> bytes:
    """/bin/sh and a few tools with the libraries they need."""
    files: dict[str, bytes] = {}
    for name in PROGRAMS:
        program = Path("/bin", name)
        files[f"bin/{name}"] = program.read_bytes()
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+)", said):
            files[library.lstrip("/")] = Path(library).read_bytes()
    files["opt/base/gone"] = b"g"
    return tar(files)


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(body), 0o755
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()
