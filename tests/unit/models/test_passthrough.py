"""Files of kinds that this tool does not parse: into a store and back, byte for byte, from a folder and from the hub.

The files are made here by the formats' own rules, not by the libraries that usually write them: an ONNX model is a
protobuf message, a TorchScript archive an uncompressed zip with a pickle and aligned storages, SentencePiece a protobuf.
"""

from __future__ import annotations

import json
import pickle
import random
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants

from builder.engines.local import LocalEngine
from builder.models import hub
from builder.models.resolve import resolve
from builder.models.source import ModelRef, ModelSnapshot
from builder.stores.directory import DirectoryStore
from builder.transfer.manifests import read_manifest
from builder.transfer.restore import restore
from builder.weights import push, split
from tests.models import gguf_model
from tests.servers.hub import REPO, HubServer


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    body = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(body)) + body


def onnx() -> bytes:
    """ModelProto: one MatMul with its weight as raw data (onnx.proto: ir_version 1, graph 7, opset_import 8)."""
    weight = field(1, 64) + field(1, 64) + field(2, 1) + field(8, "w") + field(9, random.Random(1).randbytes(64 * 64 * 4))
    node = field(1, "x") + field(1, "w") + field(2, "y") + field(4, "MatMul")
    graph = field(1, node) + field(2, "g") + field(5, weight)
    return field(1, 8) + field(2, "test") + field(7, graph) + field(8, field(1, "") + field(2, 17))


def torchscript(path: Path) -> None:
    """What torch.jit.save writes: everything stored, not deflated, below one folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"weight": ("storage", "0", 4096)}, protocol=2))
        archive.writestr(
            "model/code/__torch__.py", "class M(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    return x\n"
        )
        archive.writestr("model/data/0", random.Random(2).randbytes(16384))
        archive.writestr("model/constants.pkl", pickle.dumps((), protocol=2))
        archive.writestr("model/version", "3\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    root.mkdir()
    (root / "model.onnx").write_bytes(onnx())
    torchscript(root / "model.pt")
    (root / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"é": 0, "\u2028": 1}}})
    )
    (root / "tokenizer.model").write_bytes(b"".join(field(1, field(1, f"▁{n}") + field(3, 1)) for n in range(500)))
    (root / "merges.txt").write_bytes("#version: 0.2\r\nĠ t\r\n".encode())
    (root / "empty.py").write_bytes(b"")
    return root


def there_and_back(snapshot: ModelSnapshot, root: Path) -> dict[str, bytes]:
    store = DirectoryStore(root / "store")
    push.push(split.plan(snapshot, chunk_bytes=4096), store, LocalEngine(2), name="m")
    source = store.source()
    restore(read_manifest(source, "m"), source, root / "out")
    inside = (p for p in (root / "out").rglob("*") if p.is_file() and ".builder" not in p.parts)
    return {p.relative_to(root / "out").as_posix(): p.read_bytes() for p in inside}


def test_from_a_folder(folder: Path, tmp_path: Path) -> None:
    snapshot = resolve(ModelRef(str(folder)))
    assert {f.mode for f in split.plan(snapshot).files} == {"raw"}
    assert there_and_back(snapshot, tmp_path) == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_one_file(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "model.onnx", gguf_model(tmp_path / "g" / "tiny.gguf")):
        found = there_and_back(resolve(ModelRef(str(path))), tmp_path / path.suffix)
        assert found == {path.name: path.read_bytes()}


def test_from_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "hf_token"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer(folder) as server:
        found = there_and_back(hub.snapshot(ModelRef(f"hf://{REPO}"), endpoint=server.endpoint), tmp_path)
        assert server.strange == []
    assert found == {p.name: p.read_bytes() for p in folder.iterdir()}
