"""How much of a changed model is sent again, in bytes: the cut follows the tensors, so a change moves no other chunk."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from builder.weights.push import PushReport
from tests.models import safetensors_model
from tests.unit.weights import build
from tests.unit.weights.build import Watched

TARGET = 256 << 10  # against tensors of 1 to 8 MiB as 16 MiB against those of a large model
SHAPE = {"layers": 5, "hidden": 512, "vocab": 8192}  # 42 MB


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return safetensors_model(tmp_path_factory.mktemp("base") / "model", shards=4, **SHAPE)


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Watched:
    """It holds the model already."""
    store = Watched(tmp_path / "store")
    push(base, store)
    return store


def push(folder: Path, store: Watched) -> PushReport:
    return build.push(folder, store, chunk_bytes=TARGET)


def share(report: PushReport) -> float:
    return report.sent_bytes / report.bytes


def test_an_edited_header(base: Path, store: Watched, tmp_path: Path) -> None:
    """A longer header moves every tensor of its file."""
    edited = safetensors_model(tmp_path / "model", shards=4, metadata="a note " * 100, **SHAPE)
    report = push(edited, store)
    assert report.bytes > sum(p.stat().st_size for p in base.iterdir())
    assert 0 < share(report) <= 0.001


def test_four_shards_made_two(store: Watched, tmp_path: Path) -> None:
    report = push(safetensors_model(tmp_path / "model", shards=2, **SHAPE), store)
    assert report.files == 4
    assert 0 < share(report) <= 0.01


def test_rows_appended_to_the_vocabulary(base: Path, store: Watched, tmp_path: Path) -> None:
    """64 rows at the end of both the embeddings and the head; all the rest of the bytes as before."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in base.iterdir():
        grown = _with_rows(path, 64) if path.suffix == ".safetensors" else path.read_bytes()
        (folder / path.name).write_bytes(grown)
    report = push(folder, store)
    assert report.bytes >= sum(p.stat().st_size for p in base.iterdir()) + 2 * 64 * SHAPE["hidden"] * 2
    assert 0 < share(report) <= 0.05


def _with_rows(path: Path, rows: int) -> bytes:
    body = path.read_bytes()
    (size,) = struct.unpack("<Q", body[:8])
    header, data = json.loads(body[8 : 8 + size]), body[8 + size :]
    out, made = b"", {}
    for name, tensor in header.items():
        start, end = tensor["data_offsets"]
        piece, shape = data[start:end], list(tensor["shape"])
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            piece += bytes(range(256)) * (rows * shape[1] * 2 // 256)
            shape[0] += rows
        made[name] = {"dtype": tensor["dtype"], "shape": shape, "data_offsets": [len(out), len(out) + len(piece)]}
        out += piece
    text = json.dumps(made).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + out
