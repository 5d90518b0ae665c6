"""Random safetensors and GGUF files: split covers them, push and pull give them back, the manifest says what they hold.

What the files hold is known twice: from the writer that made them, and from a reader of a few lines that shares no code
with the package's own.
"""

from __future__ import annotations

import json
import random
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder import pipeline
from builder.format.manifest import File
from builder.stores.directory import DirectoryStore
from builder.weights import split
from tests.unit.weights.build import push, snapshot

BITS = {"BOOL": 8, "U8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F16": 16, "BF16": 16, "I32": 32, "F32": 32, "F64": 64,
        "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # fmt: skip
GGML = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 12: (256, 144), 24: (1, 1), 30: (1, 2), 39: (32, 17)}
View = dict[str, tuple[str, tuple[int, ...], int, int]]
"""name -> dtype, shape (row major), first byte in the file, bytes."""

SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a store syncs every chunk; here that is free
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str | int
    shape: tuple[int, ...]
    size: int
    seed: int

    @property
    def body(self) -> bytes:
        return random.Random(f"{self.seed}:{self.name}").randbytes(self.size)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
axes = st.lists(st.integers(0, 40), max_size=3)


@st.composite
def safetensors_tensors(draw: st.DrawFn) -> list[Tensor]:
    made = []
    for name in draw(st.lists(names.filter(lambda n: n != "__metadata__"), max_size=8, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(BITS))), draw(axes)
        bits = BITS[dtype]
        for n in shape:
            bits *= n
        if bits % 8:  # a tensor of sub-byte elements must fill whole bytes
            shape, bits = [*shape, 8], bits * 8
        made.append(Tensor(name, dtype, tuple(shape), bits // 8, draw(st.integers(0, 3))))
    return made


@st.composite
def gguf_tensors(draw: st.DrawFn) -> list[Tensor]:
    made = []
    for name in draw(st.lists(names, max_size=8, unique=True)):
        kind, shape = draw(st.sampled_from(sorted(GGML))), draw(axes)
        block, width = GGML[kind]
        if shape:
            shape[-1] *= block
        elif block > 1:
            shape = [block]
        elements = 1
        for n in shape:
            elements *= n
        made.append(Tensor(name, kind, tuple(shape), elements // block * width, draw(st.integers(0, 3))))
    return made


def write_safetensors(tensors: list[Tensor], *, metadata: dict[str, str], spaces: int, shuffle: int = 0) -> bytes:
    """Data in the order of the list, header keys in any order, no alignment."""
    entries: list[tuple[str, Any]] = [("__metadata__", metadata)] if metadata else []
    at = 0
    for t in tensors:
        entries.append((t.name, {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [at, at + t.size]}))
        at += t.size
    random.Random(shuffle).shuffle(entries)
    text = json.dumps(dict(entries), ensure_ascii=bool(shuffle % 2)).encode() + b" " * spaces
    return struct.pack("<Q", len(text)) + text + b"".join(t.body for t in tensors)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def write_gguf(tensors: list[Tensor], *, alignment: int, note: str, tail: int) -> bytes:
    """tail: bytes after the last tensor, which writers pad or not."""
    meta = [text("general.alignment") + struct.pack("<II", 4, alignment), text("note") + struct.pack("<I", 8) + text(note)]
    head, data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta)) + b"".join(meta), b""
    for t in tensors:
        data += bytes(-len(data) % alignment)
        axes = t.shape[::-1]
        head += text(t.name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, t.dtype, len(data))
        data += t.body
    head += bytes(-len(head) % alignment) if tensors else b""
    return head + data + bytes(tail if tensors else 0)


def read_safetensors(body: bytes) -> View:
    size = 8 + int.from_bytes(body[:8], "little")
    raw = {k: v for k, v in json.loads(body[8:size]).items() if k != "__metadata__"}
    return {
        name: (t["dtype"], tuple(t["shape"]), size + t["data_offsets"][0], t["data_offsets"][1] - t["data_offsets"][0])
        for name, t in raw.items()
    }


def read_gguf(body: bytes) -> View:
    """Knows the two metadata pairs that write_gguf makes, and nothing else."""
    at = 24 + 8 + 17 + 4
    alignment = struct.unpack_from("<I", body, at)[0]
    at += 4 + 8 + 4 + 4
    at += 8 + struct.unpack_from("<Q", body, at)[0]
    found = {}
    for _ in range(struct.unpack_from("<Q", body, 8)[0]):
        length = struct.unpack_from("<Q", body, at)[0]
        name, at = body[at + 8 : at + 8 + length].decode(), at + 8 + length
        count = struct.unpack_from("<I", body, at)[0]
        shape = struct.unpack_from(f"<{count}Q", body, at + 4)[::-1]
        kind, offset = struct.unpack_from("<IQ", body, at + 4 + 8 * count)
        at += 4 + 8 * count + 12
        block, width = GGML[kind]
        elements = 1
        for n in shape:
            elements *= n
        found[name] = (str(kind), shape, offset, elements // block * width)
    start = at + -at % alignment
    return {name: (kind, shape, start + offset, size) for name, (kind, shape, offset, size) in found.items()}


NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 8: "Q8_0", 12: "Q4_K", 24: "I8", 30: "BF16", 39: "MXFP4"}


def require_view(file: File, view: View) -> None:
    """The manifest's tensors are the reader's."""
    shown = {t.name: (t.dtype, t.shape, t.offset, t.size) for t in file.tensors}
    assert shown == {n: (NAMES[int(d)] if d.isdecimal() else d, s, o, z) for n, (d, s, o, z) in view.items()}


def round_trip(folder: Path, store: DirectoryStore, *, target: int) -> dict[str, File]:
    """Push, pull, compare every byte. The manifest's files."""
    report = push(folder, store, chunk_bytes=target)
    at = 0
    for plan in split.plan(snapshot(folder), chunk_bytes=target).files:
        at = 0
        for offset, size in plan.pieces:
            assert (offset, 0 < size <= 1.75 * target) == (at, True)
            at += size
        assert at == plan.file.size
    with tempfile.TemporaryDirectory(dir=SCRATCH) as out:
        pipeline.restore_weights(store.source(), report.digest, Path(out) / "m")
        for path in folder.rglob("*"):
            assert path.is_dir() or (Path(out) / "m" / path.relative_to(folder)).read_bytes() == path.read_bytes()
    return {f.path: f for f in report.manifest.files}


@given(
    files=st.lists(safetensors_tensors(), min_size=1, max_size=4),
    metadata=st.dictionaries(names, names, max_size=2),
    spaces=st.integers(0, 9),
    shuffle=st.integers(0, 5),
    target=st.integers(1, 3000),
)
@few
def test_safetensors_round_trip(
    files: list[list[Tensor]], metadata: dict[str, str], spaces: int, shuffle: int, target: int
) -> None:
    target = max(target, max((t.size for f in files for t in f), default=0) // 50)  # a chunk is a file: not thousands of them
    target = max(target, 200)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as at:
        folder = Path(at) / "model"
        (folder / "deep" / "er").mkdir(parents=True)
        bodies = {}
        for i, tensors in enumerate(files):
            path = ("", "deep/", "deep/er/")[i % 3] + f"part-{i}.safetensors"
            bodies[path] = write_safetensors(tensors, metadata=metadata, spaces=spaces, shuffle=shuffle)
            (folder / path).write_bytes(bodies[path])
        (folder / "empty.txt").touch()
        made = round_trip(folder, DirectoryStore(Path(at) / "store"), target=target)
        for path, body in bodies.items():
            require_view(made[path], read_safetensors(body))
            assert made[path].header == 8 + int.from_bytes(body[:8], "little")


@given(
    tensors=gguf_tensors(),
    alignment=st.sampled_from([1, 2, 8, 32, 64, 4096]),
    note=names,
    tail=st.sampled_from([0, 1, 31, 4096]),
    target=st.integers(200, 4000),
)
@few
def test_gguf_round_trip(tensors: list[Tensor], alignment: int, note: str, tail: int, target: int) -> None:
    body = write_gguf(tensors, alignment=alignment, note=note, tail=tail)
    target = max(target, len(body) // 60)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as at:
        folder = Path(at) / "model"
        folder.mkdir()
        (folder / "m.gguf").write_bytes(body)
        made = round_trip(folder, DirectoryStore(Path(at) / "store"), target=target)
        require_view(made["m.gguf"], read_gguf(body))


@given(tensors=safetensors_tensors(), spaces=st.integers(0, 9), note=names, target=st.integers(200, 2000))
@few
def test_a_header_edit_sends_the_header_only(tensors: list[Tensor], spaces: int, note: str, target: int) -> None:
    target = max(target, sum(t.size for t in tensors) // 60)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as at:
        store, folder = DirectoryStore(Path(at) / "store"), Path(at) / "model"
        folder.mkdir()
        path = folder / "m.safetensors"
        path.write_bytes(write_safetensors(tensors, metadata={}, spaces=0))
        push(folder, store, chunk_bytes=target)
        path.write_bytes(write_safetensors(tensors, metadata={"note": note}, spaces=spaces, shuffle=1))
        report = push(folder, store, chunk_bytes=target)
        assert report.sent_bytes <= report.manifest.files[0].header


@given(tensors=safetensors_tensors(), cut=st.integers(0, 8), target=st.integers(200, 2000))
@few
def test_a_reshard_sends_headers_and_small_tensors_only(tensors: list[Tensor], cut: int, target: int) -> None:
    target = max(target, sum(t.size for t in tensors) // 60)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as at:
        store = DirectoryStore(Path(at) / "store")
        for name, parts in (("one", [tensors]), ("two", [tensors[:cut], tensors[cut:]])):
            folder = Path(at) / name
            folder.mkdir()
            for i, part in enumerate(parts):
                (folder / f"part-{i}.safetensors").write_bytes(write_safetensors(part, metadata={}, spaces=0))
            report = push(folder, store, chunk_bytes=target)
        small = sum(t.size for t in tensors if t.size < target / 4)
        assert report.sent_bytes <= sum(f.header for f in report.manifest.files) + small
