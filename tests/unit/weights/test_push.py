"""Push: what is written, in which order, how much memory, and what stops it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from pathlib import Path

import pytest

from builder.errors import CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.format.manifest import Chunk, chunk_key
from builder.stores.base import Reader
from builder.stores.directory import DirectoryStore
from builder.transfer.checksum import crc64nvme_hex
from builder.transfer.manifests import read_manifest
from builder.transfer.restore import restore
from builder.weights import push as pushing
from builder.weights import split
from tests.bounds import BOUND_S
from tests.models import gguf_model, safetensors_model
from tests.unit.weights.build import ENGINE, TARGET, Watched, push, snapshot


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = safetensors_model(tmp_path / "model", layers=4, shards=2)
    gguf_model(folder / "draft.gguf")
    (folder / "empty.txt").touch()
    (folder / "copy.bin").write_bytes(bytes(3 * TARGET))  # three equal chunks
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "store")


def test_a_pushed_model_comes_back_byte_for_byte(model: Path, store: Watched, tmp_path: Path) -> None:
    report = push(model, store)
    manifest = read_manifest(Reader(store), "m")
    assert manifest == report.manifest
    assert manifest.digest == report.digest
    restore(manifest, store.source(), tmp_path / "out")
    for path in model.rglob("*"):
        assert (tmp_path / "out" / path.relative_to(model)).read_bytes() == path.read_bytes()
    for f in manifest.files:
        body = (model / f.path).read_bytes()
        assert (f.size, f.sha256, f.crc64nvme) == (len(body), hashlib.sha256(body).hexdigest(), crc64nvme_hex(body))
    assert manifest.small["config.json"] == (model / "config.json").read_bytes()
    assert manifest.small["empty.txt"] == b""


def test_manifest_after_the_last_chunk_and_refs_after_the_manifest(model: Path, store: Watched) -> None:
    report = push(model, store)
    kinds = [key.partition("/")[0] for key in store.written]
    assert kinds == ["chunks"] * report.chunks + ["manifests", "refs"]
    assert report.sent_chunks == report.chunks == len(set(store.written)) - 2


def test_a_second_push_sends_nothing(model: Path, store: Watched) -> None:
    first = push(model, store)
    store.written.clear()
    second = push(model, store)
    assert store.written == []
    assert (second.sent_chunks, second.sent_bytes) == (0, 0)
    assert (second.reused_chunks, second.reused_bytes) == (first.sent_chunks, first.sent_bytes)
    assert second.digest == first.digest


def test_the_manifest_does_not_depend_on_where_the_model_lies(model: Path, store: Watched, tmp_path: Path) -> None:
    first = push(model, store)
    (tmp_path / "elsewhere").mkdir()
    model.rename(tmp_path / "elsewhere" / "model")
    assert push(tmp_path / "elsewhere" / "model", DirectoryStore(tmp_path / "two")).digest == first.digest


def test_dry_run_writes_nothing_and_says_what_would_be_sent(model: Path, store: Watched) -> None:
    dry = push(model, store, dry_run=True)
    assert store.written == []
    assert not store.root.exists()
    real = push(model, store)
    assert (dry.digest, dry.sent_chunks, dry.sent_bytes) == (real.digest, real.sent_chunks, real.sent_bytes)


def test_memory_is_bounded(tmp_path: Path) -> None:
    folder = safetensors_model(tmp_path / "m", layers=12, hidden=128)
    inside, most, lock = 0, 0, threading.Lock()

    class Slow(Watched):
        def put(self, key: str, data: object, **digests: str) -> None:  # type: ignore[override]
            nonlocal inside, most
            with lock:
                inside += len(data)  # type: ignore[arg-type]
                most = max(most, inside)
            time.sleep(0.002)
            super().put(key, data, **digests)  # type: ignore[arg-type]
            with lock:
                inside -= len(data)  # type: ignore[arg-type]

    report = push(folder, Slow(tmp_path / "store"))
    limit = ENGINE.concurrency * TARGET
    assert report.bytes > 20 * limit
    assert most <= report.peak_bytes <= limit
    assert report.peak_bytes > limit / 2


def test_a_chunk_that_is_there_with_another_size_stops_the_push(model: Path, store: Watched) -> None:
    report = push(model, store)
    store.delete("refs/m")
    chunk = report.manifest.files[-2].chunks[0]
    (store.root / chunk.key).write_bytes(b"short")
    with pytest.raises(IntegrityError, match=f"{chunk.key}: the store has 5 bytes there, expected {chunk.size}") as caught:
        push(model, store)
    assert "repair" in caught.value.hint
    assert store.size("refs/m") is None
    assert store.get(chunk.key, 5) == b"short"


def test_all_bad_chunks_are_reported_together(model: Path, store: Watched) -> None:
    report = push(model, store)
    bad = [c.key for c in report.manifest.file("draft.gguf").chunks]
    for key in bad:
        (store.root / key).write_bytes(b"short")
    with pytest.raises(IntegrityError) as caught:
        push(model, store)
    assert {f["object"] for f in caught.value.where["faults"]} == set(bad)
    assert all(key in caught.value.message for key in bad)
    assert "token_embd.weight" in caught.value.message


def test_a_store_that_fails_stops_the_reading(model: Path, store: Watched) -> None:
    asked = []

    def fail(key: str, size: int) -> None:
        asked.append(key)
        raise RemoteError("no")

    store.before = fail  # type: ignore[method-assign]
    with pytest.raises(RemoteError):
        push(model, store)
    assert len(asked) <= 3 * ENGINE.concurrency
    assert list(store.keys("")) == []


def test_a_store_that_fails_is_one_line(model: Path, store: Watched) -> None:
    together = threading.Barrier(2, timeout=BOUND_S)

    def fail(key: str, size: int) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait()
        raise CapabilityError(f"{store.root / key}: Permission denied", hint="check the folder's owner")

    store.before = fail  # type: ignore[method-assign]
    with pytest.raises(CapabilityError) as caught:
        push(model, store)
    assert re.search(r"Permission denied \(and \d+ more chunks?\)\Z", caught.value.message)
    assert "\n" not in caught.value.message
    assert "expected stored" not in caught.value.message
    assert caught.value.hint == "check the folder's owner"


def test_bad_chunks_name_their_key_once(model: Path, store: Watched) -> None:
    bad = [c.key for c in push(model, store).manifest.file("draft.gguf").chunks]
    for key in bad:
        (store.root / key).write_bytes(b"short")
    with pytest.raises(IntegrityError, match=r"bytes, found 5 bytes") as caught:
        push(model, store)
    assert len(bad) > 1
    assert all(caught.value.message.count(key) == 1 for key in bad)


def test_a_damaged_ref_does_not_stop_the_push_that_mends_it(model: Path, store: Watched) -> None:
    digest = push(model, store).digest
    (store.root / "refs/m").write_bytes(bytes(1000))
    push(model, store)
    assert read_manifest(Reader(store), "m").digest == digest


def test_names_are_shown_escaped(store: Watched, tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    evil = folder / "b\x1b[2J\nc"
    evil.write_bytes(b"2")
    plan = split.plan(snapshot(folder), chunk_bytes=TARGET)
    evil.unlink()
    with pytest.raises(IntegrityError, match=r"b\\x1b\[2J\\nc: changed while"):
        pushing.push(plan, store, ENGINE, name="m")


@pytest.mark.parametrize("how", ["grown", "truncated", "rewritten", "gone"])
def test_a_file_that_changes_meanwhile_is_an_error(model: Path, store: Watched, how: str) -> None:
    plan = split.plan(snapshot(model), chunk_bytes=TARGET)
    victim = model / "model-00002-of-00002.safetensors"

    def change(key: str, size: int) -> None:
        store.before = lambda key, size: None  # type: ignore[method-assign]
        if how == "grown":
            with victim.open("ab") as f:
                f.write(b"x")
        elif how == "truncated":
            os.truncate(victim, 100)
        elif how == "gone":
            victim.unlink()
        else:
            os.utime(victim, ns=(1, 1))

    store.before = change  # type: ignore[method-assign]
    with pytest.raises(IntegrityError, match=r"model-00002-of-00002\.safetensors: changed while it was pushed"):
        pushing.push(plan, store, ENGINE, name="m")
    assert not list(store.keys("manifests/"))
    assert not list(store.keys("refs/"))


def test_a_damaged_manifest_is_put_again(model: Path, store: Watched) -> None:
    report = push(model, store)
    key = f"manifests/sha256/{report.digest[7:]}"
    body = bytearray((store.root / key).read_bytes())
    body[50] ^= 1
    (store.root / key).write_bytes(body)
    push(model, store)
    assert read_manifest(Reader(store), "m").digest == report.digest


def test_plain_files_lie_beside_the_chunks(model: Path, store: Watched) -> None:
    report = push(model, store, plain=True)
    assert report.plain_bytes == report.bytes
    for f in report.manifest.files:
        assert (store.root / "plain" / "m" / f.path).read_bytes() == (model / f.path).read_bytes()
    assert (store.root / "marks/plain/m").read_text() == report.digest + "\n"
    store.written.clear()
    assert push(model, store, plain=True).plain_bytes == 0
    assert store.written == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a@b", "x" * 129])
def test_names_that_are_none(model: Path, store: Watched, name: str) -> None:
    with pytest.raises(ConfigError, match="does not match"):
        push(model, store, name=name)


def test_order_is_configs_headers_embeddings_layers_final(model: Path, store: Watched) -> None:
    manifest = push(model, store).manifest
    place: dict[str, tuple[str, Chunk]] = {c.sha256: (f.path, c) for f, c in manifest.chunks()}
    tensors = [
        n
        for sha in manifest.order
        for n in manifest.file(place[sha][0]).tensors_in(place[sha][1].offset, place[sha][1].offset + place[sha][1].size)
        if place[sha][0].startswith("model-")
    ]
    assert tensors[0] == "model.embed_tokens.weight"
    layers = [int(n.split(".")[2]) for n in tensors if ".layers." in n]
    assert layers[0] == 0
    assert tensors[-1] in ("lm_head.weight", "model.norm.weight")
    assert chunk_key(manifest.order[0]) in dict(store.keys("chunks/"))
