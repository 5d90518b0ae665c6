"""Push of what was pushed before, whole or in part: what is read, hashed and sent again, and what must not be."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from builder.errors import IntegrityError, RemoteError
from builder.format.manifest import Chunk
from builder.models import source
from builder.models.source import ModelSnapshot
from builder.stores.base import Reader
from builder.transfer.manifests import read_manifest
from builder.weights import push as pushing
from builder.weights import send, split
from builder.weights.index import Index
from builder.weights.push import PushReport
from tests.models import safetensors_model
from tests.unit.weights.build import ENGINE, TARGET, Watched, push, snapshot


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a test has just made count as old."""
    monkeypatch.setattr(source, "SETTLED_S", 0.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = safetensors_model(tmp_path / "model", layers=4, shards=2)
    (folder / "empty.txt").touch()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "store")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "index")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every piece whose sha256 was computed."""
    sizes: list[int] = []

    def counted(data: bytes) -> str:
        sizes.append(len(data))
        return hashlib.sha256(data).hexdigest()

    monkeypatch.setattr(send, "sha256_hex", counted)
    return sizes


SHARD = "model-00001-of-00002.safetensors"


def test_unchanged_neither_reads_nor_writes(model: Path, store: Watched, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    first = push(model, store, index=index)
    plan = split.plan(snapshot(model), chunk_bytes=TARGET)
    store.written.clear()
    monkeypatch.setattr(source.LocalFile, "open", lambda *_: pytest.fail("a file was opened"))
    monkeypatch.setattr(pushing.lease, "hold", lambda *_, **__: pytest.fail("a lease was taken"))
    again = pushing.push(plan, store, ENGINE, name="m", index=index)
    assert store.written == []
    assert (again.sent_chunks, again.sent_bytes, again.read_bytes) == (0, 0, 0)
    assert (again.reused_chunks, again.reused_bytes) == (first.sent_chunks, first.sent_bytes)
    assert (again.digest, again.manifest) == (first.digest, first.manifest)


def test_without_an_index_everything_is_read_and_nothing_sent(model: Path, store: Watched) -> None:
    first = push(model, store)
    store.written.clear()
    again = push(model, store)
    assert store.written == []
    assert (again.read_bytes, again.sent_bytes, again.digest) == (first.bytes, 0, first.digest)


def test_a_file_written_a_moment_ago_is_read_again(
    model: Path, store: Watched, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second write could leave the same time stamps."""
    monkeypatch.setattr(source, "SETTLED_S", 60.0)
    first = push(model, store, index=index)
    assert push(model, store, index=index).read_bytes == first.bytes


@pytest.mark.parametrize("listing", [True, False])
def test_a_chunk_that_vanished_is_sent_again_alone(
    model: Path, store: Watched, index: Index, hashed: list[int], monkeypatch: pytest.MonkeyPatch, listing: bool
) -> None:
    if not listing:
        monkeypatch.setattr(store, "keys", refuse)
    first = push(model, store, index=index)
    chunk = first.manifest.file(SHARD).chunks[3]
    store.delete(chunk.key)
    store.written.clear()
    hashed.clear()
    again = push(model, store, index=index)
    assert store.written == [chunk.key]
    small = sum(map(len, first.manifest.small.values()))
    assert (again.sent_bytes, again.read_bytes) == (chunk.size, chunk.size + small)
    assert hashed == [chunk.size]
    assert again.digest == first.digest
    assert store.get(chunk.key, chunk.size) is not None


def refuse(prefix: str) -> Iterator[tuple[str, int]]:
    raise RemoteError("may not list")


@pytest.mark.parametrize("gone", ["refs/m", "manifests/"])
def test_only_what_is_gone_is_written(model: Path, store: Watched, index: Index, gone: str) -> None:
    push(model, store, index=index)
    (key,) = [key for key, _ in store.keys(gone)]
    store.delete(key)
    store.written.clear()
    again = push(model, store, index=index)
    assert store.written == [key]
    assert again.sent_chunks == 0
    assert again.read_bytes == sum(map(len, again.manifest.small.values()))


def test_a_chunk_of_another_size_is_no_unchanged_push(model: Path, store: Watched, index: Index) -> None:
    first = push(model, store, index=index)
    bad = [c.key for c in first.manifest.file(SHARD).chunks[:2]]
    for key in bad:
        (store.root / key).write_bytes(b"short")
    with pytest.raises(IntegrityError) as caught:
        push(model, store, index=index)
    assert {f["object"] for f in caught.value.where["faults"]} == set(bad)


def test_only_a_changed_file_is_read(model: Path, store: Watched, index: Index) -> None:
    push(model, store, index=index)
    path = model / SHARD
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    again = push(model, store, index=index)
    assert again.sent_chunks == 1
    assert again.read_bytes == len(body) + sum(map(len, again.manifest.small.values()))
    assert read_manifest(Reader(store), "m").file(SHARD).sha256 == hashlib.sha256(body).hexdigest()


def test_a_file_in_another_cut_is_hashed_anew(model: Path, store: Watched, index: Index, hashed: list[int]) -> None:
    push(model, store, index=index)
    hashed.clear()
    again = push(model, store, index=index, chunk_bytes=TARGET * 2)
    assert hashed
    assert again.digest == push(model, Watched(store.root / "other"), chunk_bytes=TARGET * 2).digest


def test_an_entry_that_is_wrong_stops_the_push_once(model: Path, store: Watched, index: Index) -> None:
    """The file's bytes changed under the same stamps; no such chunk may get into the store under the old name."""
    report = push(model, store, index=index)
    file = next(f for f in snapshot(model).files if f.path == SHARD)
    chunk = report.manifest.file(SHARD).chunks[2]
    index.add_chunk(file.identity, Chunk("0" * 64, chunk.offset, chunk.size, chunk.crc64nvme))
    with pytest.raises(IntegrityError, match="under the same time stamps"):
        push(model, store, index=index)
    assert store.size(f"chunks/sha256/00/{'0' * 64}") is None
    assert push(model, store, index=index).digest == report.digest


class Killed(BaseException):
    """As if the process had ended: nothing after this runs in the worker."""


def stopped_push(model: Path, store: Watched, index: Index, after: int) -> None:
    """A push that ends when `after` chunks are stored."""
    stored = 0
    lock = threading.Lock()

    def count(key: str, size: int) -> None:
        nonlocal stored
        with lock:
            stored += 1
            if stored > after:
                raise Killed

    store.before = count  # type: ignore[method-assign]
    with pytest.raises(Killed):
        push(model, store, index=index)
    store.before = lambda key, size: None  # type: ignore[method-assign]


def test_a_stopped_push_goes_on_where_it_was(model: Path, store: Watched, index: Index, hashed: list[int]) -> None:
    stopped_push(model, store, index, 9)
    there = {key for key in store.written if key.startswith("chunks/")}
    assert len(there) >= 9
    assert not list(store.keys("refs/"))
    hashed.clear()
    store.written.clear()
    done = push(model, store, index=index)
    assert not there.intersection(store.written)
    assert done.sent_chunks == done.chunks - len(there)
    assert len(hashed) <= done.chunks - len(there)
    assert done.digest == push(model, Watched(store.root / "other")).digest


def test_a_dry_run_spares_the_push_the_hashing(model: Path, store: Watched, index: Index, hashed: list[int]) -> None:
    dry = push(model, store, index=index, dry_run=True)
    assert len(hashed) >= dry.chunks
    hashed.clear()
    assert push(model, store, index=index).sent_bytes == dry.sent_bytes
    assert sum(hashed) == dry.sent_bytes  # only to prove what is sent


@dataclass(frozen=True)
class Remote:
    """A file whose bytes are elsewhere. asked: the ranges that were read from there."""

    path: str
    body: bytes
    sha256: str = ""
    asked: list[tuple[int, int]] = field(default_factory=list, compare=False)

    @property
    def size(self) -> int:
        return len(self.body)

    @property
    def identity(self) -> str:
        return f"remote:{self.path}"

    @property
    def at(self) -> str:
        return f"remote://{self.path}"

    @contextmanager
    def open(self) -> Iterator[Remote]:
        yield self

    def read_at(self, offset: int, size: int) -> bytes:
        self.asked.append((offset, size))
        return self.body[offset : offset + size]

    def require_unchanged(self) -> None: ...


BODY = os.urandom(10 * TARGET)


def remote_push(file: Remote, store: Watched, index: Index) -> PushReport:
    plan = split.plan(ModelSnapshot("remote", "", (file,)), chunk_bytes=TARGET)
    file.asked.clear()
    return pushing.push(plan, store, ENGINE, name="m", index=index)


def interrupted(file: Remote, store: Watched, index: Index) -> list[tuple[int, int]]:
    """The ranges that a push had stored when it was stopped."""
    stored: list[str] = []

    def count(key: str, size: int) -> None:
        if len(stored) >= 4:
            raise RemoteError("gone")
        stored.append(key)

    store.before = count  # type: ignore[method-assign]
    with pytest.raises(RemoteError):
        remote_push(file, store, index)
    store.before = lambda key, size: None  # type: ignore[method-assign]
    return sorted(index.known(file.identity).chunks)


def test_a_remote_file_goes_on_from_the_store(store: Watched, index: Index) -> None:
    """What is stored comes from the store, to be hashed; the origin is asked for the rest alone."""
    file = Remote("w.bin", BODY, hashlib.sha256(BODY).hexdigest())
    done = interrupted(file, store, index)
    assert done
    report = remote_push(file, store, index)
    assert not set(done).intersection(file.asked)
    assert len(file.asked) == 10 - len(done)
    assert report.manifest.file("w.bin").sha256 == file.sha256
    assert report.sent_chunks == 10 - len(done)
    assert remote_push(file, store, index).read_bytes == 0


def test_a_stored_chunk_that_is_damaged_is_not_fed_on(store: Watched, index: Index) -> None:
    file = Remote("w.bin", BODY, hashlib.sha256(BODY).hexdigest())
    offset, size = interrupted(file, store, index)[0]
    chunk = index.known(file.identity).chunks[offset, size]
    (store.root / chunk.key).write_bytes(bytes(size))
    remote_push(file, store, index)
    assert (offset, size) in file.asked
    assert store.get(chunk.key, size) == BODY[offset : offset + size]


def test_the_origins_sha256_counts_after_a_resume_too(store: Watched, index: Index) -> None:
    interrupted(Remote("w.bin", BODY), store, index)
    with pytest.raises(IntegrityError, match=r"w\.bin: sha256 [0-9a-f]{64}, but its origin says 1111"):
        remote_push(Remote("w.bin", BODY, "1" * 64), store, index)
    assert not list(store.keys("refs/"))
    assert not index.known("remote:w.bin").sha256


def test_a_known_file_that_its_origin_now_denies_is_refused(store: Watched, index: Index) -> None:
    remote_push(Remote("w.bin", BODY), store, index)
    with pytest.raises(IntegrityError, match="but its origin says 1111"):
        remote_push(Remote("w.bin", BODY, "1" * 64), store, index)
