"""Models and stores made by hand, so that reading is tested apart from splitting and pushing."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from builder.format.manifest import Chunk, File, Manifest, Tensor, manifest_key, ref_key
from builder.transfer.checksum import Buffer, crc64nvme_hex


@dataclass(frozen=True)
class Model:
    """A manifest, the files it stands for, and the objects of its store."""

    manifest: Manifest
    files: dict[str, bytes]
    objects: dict[str, bytes]

    def store(self, folder: Path) -> Path:
        """The store as a folder."""
        for key, body in self.objects.items():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        return folder

    def same(self, folder: Path) -> bool:
        """The folder holds these files, byte for byte, and nothing else but the record of them."""
        found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        found = {name: p for name, p in found.items() if not name.startswith(".builder/")}
        return found.keys() == self.files.keys() and all(p.read_bytes() == self.files[n] for n, p in found.items())


def model(files: Mapping[str, bytes], *, chunk_bytes: int = 1000, small: Iterable[str] = (), name: str = "m") -> Model:
    """`files` cut every chunk_bytes. Files named *.safetensors get one tensor per chunk, in layers 0, 1, ..."""
    cut = [_file(path, body, chunk_bytes) for path, body in sorted(files.items())]
    order = tuple(dict.fromkeys(c.sha256 for f in cut for c in f.chunks))
    manifest = Manifest(name, "folder", "r1", "test", tuple(cut), order, {p: files[p] for p in small})
    objects = {c.key: files[f.path][c.offset : c.offset + c.size] for f in cut for c in f.chunks}
    ref = f"{manifest.digest}\n".encode()
    return Model(
        manifest,
        dict(files),
        {
            **objects,
            manifest_key(manifest.digest): manifest.to_bytes(),
            ref_key(name): ref,
            ref_key(f"{name}@r1"): ref,
        },
    )


def random_model(*, files: int = 2, size: int = 50_000, chunk_bytes: int = 1000, seed: int = 0) -> Model:
    draw = random.Random(seed)
    return model({f"part-{n}.safetensors": draw.randbytes(size) for n in range(files)}, chunk_bytes=chunk_bytes)


def _file(path: str, body: bytes, chunk_bytes: int) -> File:
    parts = [(at, body[at : at + chunk_bytes]) for at in range(0, len(body), chunk_bytes)]
    chunks = tuple(Chunk(hashlib.sha256(p).hexdigest(), at, len(p), crc64nvme_hex(p)) for at, p in parts)
    tensors: tuple[Tensor, ...] = ()
    if path.endswith(".safetensors"):
        tensors = tuple(
            Tensor(f"layers.{n}.w", "U8", (c.size,), c.offset, c.size, 1, f"layer.{n}") for n, c in enumerate(chunks)
        )
    mode = "safetensors" if tensors else "raw"
    return File(path, len(body), hashlib.sha256(body).hexdigest(), crc64nvme_hex(body), mode, 0, chunks, tensors)


class DictSource:
    """A source over a dict that counts reads. before(key): called first, may raise or return other bytes."""

    url = "dict:"

    def __init__(self, objects: Mapping[str, bytes], before: Callable[[str], Buffer | None] | None = None) -> None:
        self.objects = objects
        self.before = before
        self.reads: list[str] = []

    def read(self, key: str, *, limit: int) -> Buffer | None:
        self.reads.append(key)
        other = self.before(key) if self.before else None
        return self.objects.get(key) if other is None else other
