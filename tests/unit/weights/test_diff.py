"""What differs between two versions, said from manifests alone, and never more than they prove."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from builder.format.manifest import Manifest
from builder.stores.directory import DirectoryStore
from builder.weights.diff import DiffReport, diff
from tests.models import gguf_model, safetensors_model, write_safetensors
from tests.unit.weights.build import push

TARGET = 2 << 10
SHAPES = {"a.weight": [64, 32], "b.weight": [64, 32], "c.bias": [32], "d.bias": [32], "e.weight": [64, 32]}


def stored(folder: Path, *, chunk_bytes: int = TARGET) -> Manifest:
    return push(folder, DirectoryStore(folder.parent / "store"), chunk_bytes=chunk_bytes).manifest


def model(folder: Path, shapes: dict[str, list[int]] = SHAPES, *, seed: int = 0, metadata: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", list(shapes.items()), seed=seed, metadata=metadata)
    (folder / "config.json").write_text("{}")
    return folder


def change(folder: Path, name: str) -> None:
    """One byte in the middle of a tensor of model()."""
    at = 0
    for tensor, shape in SHAPES.items():
        size = 2
        for n in shape:
            size *= n
        if tensor == name:
            break
        at += size
    path = folder / "model.safetensors"
    body = bytearray(path.read_bytes())
    start = len(body) - sum(2 * (s[0] * (s[1] if len(s) > 1 else 1)) for s in SHAPES.values())
    body[start + at + size // 2] ^= 1
    path.write_bytes(body)


def states(report: DiffReport) -> dict[str, str]:
    return {t.name: t.change for t in report.tensors}


def test_a_version_is_the_same_as_itself(tmp_path: Path) -> None:
    m = stored(model(tmp_path / "m"))
    report = diff(m, m)
    assert report.same
    assert (report.same_files, report.same_tensors, report.new_chunks, report.gone_chunks) == (2, 5, 0, 0)
    assert report.shared_chunks == len(m.order)


@pytest.mark.parametrize("name", ["a.weight", "b.weight", "e.weight"])
def test_a_changed_tensor_is_named_and_no_other(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "m")
    before = stored(folder)
    change(folder, name)
    report = diff(before, stored(folder))
    assert states(report) == {name: "changed"}
    assert report.same_tensors == 4
    assert [(f.path, f.change) for f in report.files] == [("model.safetensors", "changed")]
    assert report.new_bytes == report.files[0].new_bytes == TARGET
    assert report.gone_bytes == TARGET


def test_what_shares_a_changed_chunk_is_unclear(tmp_path: Path) -> None:
    """Two biases of 64 bytes share a chunk: either may have changed, and the manifest does not say which."""
    folder = model(tmp_path / "m")
    before = stored(folder)
    change(folder, "c.bias")
    assert states(diff(before, stored(folder))) == {"c.bias": "unclear", "d.bias": "unclear"}


def test_shapes_and_names(tmp_path: Path) -> None:
    before = stored(model(tmp_path / "m"))
    shapes = {**SHAPES, "a.weight": [32, 64], "e.weight": [80, 32], "new": [64, 32]}
    del shapes["b.weight"]
    after = stored(model(tmp_path / "m", shapes))
    report = diff(before, after)
    found = {t.name: (t.change, t.before, t.after) for t in report.tensors}
    assert found["a.weight"] == ("changed", "BF16 [64, 32]", "BF16 [32, 64]")
    assert found["b.weight"] == ("removed", "BF16 [64, 32]", "")
    assert found["e.weight"] == ("changed", "BF16 [64, 32]", "BF16 [80, 32]")
    assert found["new"] == ("added", "", "BF16 [64, 32]")
    assert set(found) == {"a.weight", "b.weight", "e.weight", "new"}


def test_a_longer_header_changes_no_tensor(tmp_path: Path) -> None:
    before = stored(model(tmp_path / "m"))
    report = diff(before, stored(model(tmp_path / "m", metadata="x" * 5000)))
    assert report.tensors == ()
    assert [f.change for f in report.files] == ["changed"]


def test_a_tensor_in_another_shard_is_the_same(tmp_path: Path) -> None:
    one = stored(safetensors_model(tmp_path / "one", layers=2, hidden=32, shards=1), chunk_bytes=4096)
    two = stored(safetensors_model(tmp_path / "two", layers=2, hidden=32, shards=2), chunk_bytes=4096)
    report = diff(one, two)
    assert not any(t.change in ("changed", "added", "removed") for t in report.tensors)
    assert report.same_tensors > 10
    assert {f.change for f in report.files} == {"added", "removed"}
    assert report.shared_bytes > 0.9 * two.size


def test_another_cut_of_the_same_file_is_the_same(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    report = diff(stored(folder), stored(folder, chunk_bytes=4 * TARGET))
    assert report.same
    assert (report.tensors, report.same_tensors) == ((), 5)


def test_equal_names_in_two_files_are_two_tensors(tmp_path: Path) -> None:
    """unet and vae of a diffusion model share tensor names."""
    folder = tmp_path / "m"
    for part in ("unet", "vae"):
        (folder / part).mkdir(parents=True)
        write_safetensors(folder / part / "model.safetensors", [("w", [64, 32])], seed=hash(part) % 97)
    manifest = stored(folder)
    twice = [replace(f, tensors=(f.tensors[0]._replace(name="w"),)) for f in manifest.files]
    manifest = replace(manifest, files=tuple(twice))
    one = replace(manifest, files=(twice[0], replace(twice[1], chunks=twice[0].chunks, sha256="0" * 64)))
    report = diff(manifest, one)
    assert [(t.name, t.file) for t in report.tensors] == [("w", "vae/model.safetensors")]


def test_nothing_before(tmp_path: Path) -> None:
    m = stored(model(tmp_path / "m"))
    report = diff(None, m, send_chunks=3, send_bytes=99)
    assert (report.before, report.after) == ("", m.digest)
    assert {f.change for f in report.files} == {t.change for t in report.tensors} == {"added"}
    assert report.new_bytes == sum(f.new_bytes for f in report.files) == sum({c.sha256: c.size for _, c in m.chunks()}.values())
    assert (report.send_chunks, report.send_bytes) == (3, 99)


def test_it_adds_up_both_ways(tmp_path: Path) -> None:
    """Random changes: each tensor is in one state, chunks are counted once, and the other way round is its mirror."""
    draw = random.Random(7)
    mirror = {"added": "removed", "removed": "added", "changed": "changed", "unclear": "unclear"}
    folder = tmp_path / "m"
    versions = []
    for n in range(6):
        shapes = {k: v for k, v in SHAPES.items() if draw.random() > 0.2} or dict(SHAPES)
        versions.append(stored(model(folder, shapes, seed=draw.randrange(2), metadata="y" * n)))
        gguf_model(folder / "draft.gguf", seed=n % 2, layers=1, hidden=32, vocab=32)
    for a in versions:
        for b in versions:
            there, back = diff(a, b), diff(b, a)
            assert there.new_bytes == back.gone_bytes == sum(f.new_bytes for f in there.files)
            assert there.shared_bytes == back.shared_bytes
            assert {t.name: mirror[t.change] for t in there.tensors} == states(back)
            total = len({t.name for f in (*a.files, *b.files) for t in f.tensors})
            assert len(there.tensors) + there.same_tensors == total


def test_a_tensor_called_same_has_the_same_bytes(tmp_path: Path) -> None:
    """Against the bytes themselves: `same` and `changed` are never wrong."""
    draw = random.Random(3)
    folder = model(tmp_path / "m")
    for round_ in range(20):
        old = tmp_path / f"old{round_}"
        shutil.copytree(folder, old)
        before = stored(folder)
        changed = {draw.choice(list(SHAPES)) for _ in range(draw.randrange(3))}
        for name in changed:
            change(folder, name)
        found = states(diff(before, stored(folder)))
        assert {n for n, s in found.items() if s == "changed"} <= changed <= set(found)


def test_the_report_is_json(tmp_path: Path) -> None:
    m = stored(model(tmp_path / "m"))
    data = json.loads(json.dumps(diff(None, m).to_json()))
    assert data["same"] is False
    assert data["files"][0].keys() == {"path", "change", "before", "after", "new_bytes"}
