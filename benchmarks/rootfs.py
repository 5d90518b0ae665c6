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
from random import Random
from typing import Any

from builder.node.layout import host_platform
from tests import oci

NAME = "registry.example.com/bench/python:v1"
DENSE, PIECE = 0.25, 32 << 20
LAYER = 256 << 20  # bytes of a layer, unpacked; the first one holds the interpreter
PYTHON = "/usr/bin/python3"
PACKAGES = "usr/lib/python3/dist-packages"
LEFT_OUT = {"test", "site-packages", "idlelib", "ensurepip"}  # of the standard library


@dataclass(frozen=True)
class Rootfs:
    """layout: the OCI layout. unpacked, packed: bytes. layers: the blobs, bottom first."""

    layout: Path
    unpacked: int
    packed: int
    layers: tuple[Path, ...]


def make(folder: Path, size: int, packages: Path | None = None, *, dense: float = DENSE) -> Rootfs:
    """An image of about `size` unpacked bytes, in gzip layers. packages: a folder to take more files from, first.

    dense: share of the bytes that are random, as compressed GPU code is to gzip; without it the image packs 3.6 to 1.
    """
    folder.mkdir(parents=True)
    random = [_random(folder / f"{number}.bin", number) for number in range(round(size * dense / PIECE))]
    files = [*_interpreter(packages), *((path, f"usr/lib/gpu/{path.name}") for path in random), *_packages(packages)]
    plain = list(_write_layers(folder, size, files))
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
    for path in (*plain, *random):
        path.unlink()
    blobs = tuple(layout / "blobs" / "sha256" / row["digest"][7:] for row in rows)
    return Rootfs(layout, unpacked, sum(row["size"] for row in rows), blobs)


def _write_layers(folder: Path, size: int, every: list[tuple[Path, str]]) -> Iterator[Path]:
    """Uncompressed layers of (file, its place in the image), until `size` bytes are there."""
    files, left, number = iter(every), size, 0
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


def _random(path: Path, seed: int) -> Path:
    path.write_bytes(Random(seed).randbytes(PIECE))
    return path


def _folders(packages: Path | None) -> list[Path]:
    return [*([packages] if packages else []), *map(Path, site.getsitepackages())]


def _interpreter(packages: Path | None) -> Iterator[tuple[Path, str]]:
    """This interpreter, its standard library, and the system's libraries that it and numpy need."""
    python = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_paths()["stdlib"])
    folders = _folders(packages)
    wanted = [python, *standard.glob("lib-dynload/*.so")]
    wanted += [path for folder in folders for path in folder.rglob("*.so") if folder == packages or "numpy" in path.parts]
    said = "".join(subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout for path in wanted)
    for library in sorted(set(re.findall(r"(/\S+) \(0x", said))):
        if not any(library.startswith(f"{folder}/") for folder in folders):
            yield Path(library).resolve(), library.lstrip("/")
    yield python, PYTHON.lstrip("/")
    yield from _tree(standard, standard)


def _packages(packages: Path | None) -> Iterator[tuple[Path, str]]:
    for folder in _folders(packages):
        for top in sorted(folder.iterdir(), key=lambda p: (not p.name.startswith("numpy"), p.name)):
            yield from _tree(top, folder, PACKAGES)


def _tree(top: Path, base: Path, into: str = "") -> Iterator[tuple[Path, str]]:
    for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file() and not p.is_symlink()):
        if into or not (LEFT_OUT & set(path.parts) or path.suffix == ".a"):
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
    inner = {"User": "10001:0", "Entrypoint": [PYTHON], "Env": ["PATH=/usr/bin", f"PYTHONPATH=/{PACKAGES}"]}
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
