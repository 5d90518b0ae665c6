"""A Python image of any size out of this machine's own interpreter and packages, as an OCI layout: real files, no download."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.node.layout import host_platform
from tests import oci

NAME = "registry.example.com/bench/python:v1"
LAYER = 256 << 20  # bytes of a layer, unpacked; the first one holds the interpreter
PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class Rootfs:
    """layout: the OCI layout. unpacked, packed: bytes. layers: the blobs, bottom first."""

    layout: Path
    unpacked: int
    packed: int
    layers: tuple[Path, ...]


def make(folder: Path, size: int) -> Rootfs:
    """An image of about `size` unpacked bytes, in gzip layers."""
    folder.mkdir(parents=True)
    plain = [folder / f"{number}.tar" for number, _ in enumerate(_write_layers(folder, size))]
    layout = folder / "layout"
    with ThreadPoolExecutor(2) as pool:
        packed = list(pool.map(_pack, plain))
    diff_ids = []
    for path in plain:
        with path.open("rb") as stream:
            diff_ids.append("sha256:" + hashlib.file_digest(stream, "sha256").hexdigest())
    rows = [_take(layout, path) for path in packed]
    _finish(layout, rows, diff_ids)
    unpacked = sum(path.stat().st_size for path in plain)
    for path in plain:
        path.unlink()
    blobs = tuple(layout / "blobs" / "sha256" / row["digest"][7:] for row in rows)
    return Rootfs(layout, unpacked, sum(row["size"] for row in rows), blobs)


def _write_layers(folder: Path, size: int) -> Iterator[Path]:
    """Uncompressed layers until `size` bytes are there."""
    files, left, number = iter(_files()), size, 0
    while left > 0:
        path, written = folder / f"{number}.tar", 0
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            for source, name in files:
                tar.add(source, name, recursive=False, filter=_owned)
                written += source.stat().st_size
                if written >= min(LAYER, left):
                    break
        if not written:
            path.unlink()
            return
        left, number = left - written, number + 1
        yield path


def _files() -> Iterator[tuple[Path, str]]:
    """(file, its place in the image): the interpreter and its libraries, then packages of this environment."""
    python = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_paths()["stdlib"])
    wanted = [python, *standard.glob("lib-dynload/*.so")]
    said = "".join(subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout for path in wanted)
    for library in sorted(set(re.findall(r"(/\S+) \(0x", said))):
        yield Path(library).resolve(), library.lstrip("/")
    yield python, PYTHON.lstrip("/")
    yield from _tree(standard, standard)
    for packages in map(Path, site.getsitepackages()):
        for top in sorted(packages.iterdir(), key=lambda p: (not p.name.startswith(("numpy", "boto")), p.name)):
            yield from _tree(top, packages, "usr/lib/python3/dist-packages")


def _tree(top: Path, base: Path, into: str = "") -> Iterator[tuple[Path, str]]:
    for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file() and not p.is_symlink()):
        if "__pycache__" not in path.parts or into:
            yield path, f"{into}/{path.relative_to(base)}" if into else str(path).lstrip("/")


def _owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode |= 0o444
    return info


def _pack(path: Path) -> Path:
    target = path.with_suffix(".tar.gz")
    with path.open("rb") as source, gzip.GzipFile(target, "wb", 3, mtime=0) as out:
        shutil.copyfileobj(source, out, 1 << 20)
    return target


def _take(layout: Path, path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    target = layout / "blobs" / "sha256" / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size
    path.rename(target)
    return {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{digest}", "size": size}


def _finish(layout: Path, rows: list[dict[str, Any]], diff_ids: list[str]) -> None:
    arch = host_platform().split("/")[1]
    inner = {"User": "10001:0", "Entrypoint": [PYTHON], "Env": ["PATH=/usr/bin", "PYTHONDONTWRITEBYTECODE=1"]}
    config = {"os": "linux", "architecture": arch, "config": inner, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": oci.blob(layout, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": rows,
    }
    entry = oci.blob(layout, json.dumps(manifest).encode(), kind)
    entry["annotations"] = {"io.containerd.image.name": NAME}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
