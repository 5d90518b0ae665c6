"""A push over a cluster, by an engine that shares no memory with its tasks."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from builder.engines.base import Cluster
from builder.engines.local import LocalEngine
from builder.errors import BuilderError, ConfigError, IntegrityError
from builder.models.source import LocalFile, ModelSnapshot, Reading
from builder.stores.base import Store
from builder.stores.directory import DirectoryStore
from builder.weights import push as pushing
from builder.weights import split, spread
from builder.weights.index import Index
from builder.weights.push import PushReport
from builder.weights.ranges import Range, Whole
from tests.models import safetensors_model
from tests.unit.weights import build

TARGET = build.TARGET


class Apart(Cluster):
    """Every task, what it is done with and what comes of it go through pickle, as to another machine."""

    threads, concurrency = 2, 3

    def __init__(self) -> None:
        self.tasks: list[Any] = []

    def map(self, do: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        work = pickle.dumps(do)

        def perform(task: Any) -> bytes:
            self.tasks.append(task)
            try:
                return pickle.dumps(pickle.loads(work)(pickle.loads(pickle.dumps(task))))
            except BuilderError as exc:
                return pickle.dumps(exc)

        for task, result in LocalEngine(self.concurrency).map(perform, tasks):
            assert isinstance(result, bytes)
            yield task, pickle.loads(result)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return safetensors_model(tmp_path / "model", layers=3, hidden=64, shards=2)


def push(source: ModelSnapshot, store: Store, engine: Cluster, **options: Any) -> PushReport:
    return pushing.push(split.plan(source, chunk_bytes=TARGET), store, engine, name="m", **options)


def test_as_one_machine_does_it(model: Path, tmp_path: Path) -> None:
    (model / "empty.txt").touch()
    (model / "notes.bin").write_bytes(os.urandom(3 * TARGET))
    engine = Apart()
    report = push(build.snapshot(model), DirectoryStore(tmp_path / "store"), engine)
    alone = build.push(model, DirectoryStore(tmp_path / "alone"))
    assert report.manifest.to_bytes() == alone.manifest.to_bytes()
    assert (report.sent_chunks, report.sent_bytes) == (alone.sent_chunks, alone.sent_bytes)
    assert list(DirectoryStore(tmp_path / "store").keys("")) == list(DirectoryStore(tmp_path / "alone").keys(""))
    assert len([t for t in engine.tasks if isinstance(t, Range)]) > 4
    # The driver reads what goes into the manifest and nothing else.
    assert {t.file.path for t in engine.tasks} == {f.path for f in alone.manifest.files} - set(alone.manifest.small)


def test_equal_bytes_in_two_ranges_count_once(model: Path, tmp_path: Path) -> None:
    shutil.copy(model / "model-00001-of-00002.safetensors", model / "copy.bin")
    report = push(build.snapshot(model), DirectoryStore(tmp_path / "store"), Apart())
    assert report.sent_chunks + report.reused_chunks == report.chunks
    assert report.sent_chunks == len(list(DirectoryStore(tmp_path / "store").keys("chunks/")))


def test_a_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    report = push(build.snapshot(model), DirectoryStore(store), Apart(), dry_run=True)
    assert report.sent_chunks == report.chunks
    assert not store.exists()
    assert report.digest == build.push(model, DirectoryStore(tmp_path / "alone")).digest


def test_what_an_earlier_push_learned_is_not_read_again(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        os.utime(path, (1_600_000_000, 1_600_000_000))
    settled = replace(
        build.snapshot(model),
        files=tuple(replace(f, identity=f"file:{f.path}") for f in build.snapshot(model).files if isinstance(f, LocalFile)),
    )
    index, store = Index(tmp_path / "index"), DirectoryStore(tmp_path / "store")
    first = push(settled, store, Apart(), index=index)
    shutil.rmtree(tmp_path / "store" / "refs")  # or nothing would be looked at
    chunk = first.manifest.file("model-00001-of-00002.safetensors").chunks[2]
    (tmp_path / "store" / chunk.key).unlink()
    engine = Apart()
    again = push(settled, store, engine, index=index)
    assert again.digest == first.digest
    assert (again.sent_chunks, again.sent_bytes) == (1, chunk.size)
    assert [type(t) for t in engine.tasks] == [Range]


def test_a_node_with_another_folder_at_the_stores_path(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = DirectoryStore(tmp_path / "elsewhere")
    monkeypatch.setattr(DirectoryStore, "__reduce__", lambda self: (DirectoryStore, (elsewhere.root,)))
    with pytest.raises(ConfigError, match="is another store there") as error:
        push(build.snapshot(model), DirectoryStore(tmp_path / "store"), Apart())
    assert "every node" in error.value.hint
    assert not (tmp_path / "store" / "manifests").exists()
    assert not elsewhere.root.exists()


def test_a_node_without_the_file(model: Path, tmp_path: Path) -> None:
    found = build.snapshot(model)
    plan = split.plan(found, chunk_bytes=TARGET)
    away = tmp_path / "away"

    class Late(Apart):
        def map(self, do: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
            model.rename(away)
            return super().map(do, tasks)

    with pytest.raises(ConfigError, match="no such file there") as error:
        pushing.push(plan, DirectoryStore(tmp_path / "store"), Late(), name="m")
    assert "same path" in error.value.hint


@dataclass(frozen=True)
class Unsteady:
    """A file that another machine sees with one byte changed when it reads all of it: a stale cache, a bad disk."""

    file: LocalFile
    sha256: str = ""
    identity: str = ""

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def at(self) -> str:
        return self.file.at

    @contextmanager
    def open(self) -> Iterator[Reading]:
        with self.file.open() as reading:
            yield _Unsteady(self.size, reading)


@dataclass(frozen=True)
class _Unsteady:
    size: int
    reading: Reading

    def read_at(self, offset: int, size: int) -> bytes:
        body = self.reading.read_at(offset, size)
        return body[:-1] + bytes([body[-1] ^ 1]) if size == self.size else body

    def require_unchanged(self) -> None:
        self.reading.require_unchanged()


def test_two_reads_that_differ_are_found(model: Path, tmp_path: Path) -> None:
    found = build.snapshot(model)
    odd = tuple(Unsteady(f) if f.path.endswith("2.safetensors") and isinstance(f, LocalFile) else f for f in found.files)
    with pytest.raises(IntegrityError, match="two reads of it differ"):
        push(replace(found, files=odd), DirectoryStore(tmp_path / "store"), Apart())
    assert not (tmp_path / "store" / "manifests").exists()


def test_a_file_that_is_not_what_its_origin_says(model: Path, tmp_path: Path) -> None:
    found = build.snapshot(model)
    files = tuple(replace(f, sha256="0" * 64) if isinstance(f, LocalFile) else f for f in found.files)
    with pytest.raises(IntegrityError, match="its origin says"):
        push(replace(found, files=files), DirectoryStore(tmp_path / "store"), Apart())


def test_ranges_cover_what_is_missing_and_nothing_else() -> None:
    file: Any = None
    plan = split.FilePlan(file, "raw", 0, (), tuple((i * 4, 4) for i in range(8)))
    assert list(spread._runs(plan, [0, 1, 2, 4, 5, 7], 8)) == [[0, 1], [2], [4, 5], [7]]
    assert list(spread._runs(plan, range(3), 0)) == [[0], [1], [2]]
    assert list(spread._runs(plan, [], 8)) == []


def test_one_whole_read_per_file_of_several_pieces(model: Path, tmp_path: Path) -> None:
    engine = Apart()
    report = push(build.snapshot(model), DirectoryStore(tmp_path / "store"), engine)
    whole = [t.file.path for t in engine.tasks if isinstance(t, Whole)]
    assert sorted(whole) == [f.path for f in report.manifest.files if f.path.endswith(".safetensors")]
    twice = sum(f.size for f in report.manifest.files if f.path in whole)
    assert report.read_bytes == report.bytes + twice
