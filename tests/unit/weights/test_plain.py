"""plain/<name>/ holds the files of one version and nothing else, and verify proves it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.errors import IntegrityError, RemoteError
from builder.stores.base import Stored
from builder.stores.directory import DirectoryStore
from builder.transfer.checksum import Buffer, Digests
from builder.transfer.retry import Policy, retrying
from builder.transfer.source import Source
from builder.weights.plain import PlainReport, verify_plain
from tests.models import safetensors_model
from tests.unit.weights.build import ENGINE, push

SHARD = "model-00001-of-00002.safetensors"


class Noting:
    """A source that writes down what is read."""

    def __init__(self, store: Telling) -> None:
        self.url, self.store = store.url, store

    def read(self, key: str, *, limit: int) -> Buffer | None:
        self.store.read.append(key)
        return self.store.get(key, limit)


class Telling(DirectoryStore):
    """Tells the CRC64NVME of every object, as S3 does, and counts what is read and sent."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []
        self.sent: list[str] = []
        self.lies: dict[str, Stored] = {}

    def stat(self, key: str) -> Stored | None:
        if key in self.lies or self.size(key) is None:
            return self.lies.get(key)
        digests = Digests()
        digests.update((self.root / key).read_bytes())
        return Stored(digests.size, "", digests.crc64nvme)

    def source(self) -> Source:
        return Noting(self)

    def upload(self, key: str, *args: object) -> None:
        self.sent.append(key)
        super().upload(key, *args)  # type: ignore[arg-type]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return safetensors_model(tmp_path / "model", layers=1, hidden=32, vocab=64, shards=2)


@pytest.fixture(params=[DirectoryStore, Telling])
def store(request: pytest.FixtureRequest, tmp_path: Path, model: Path) -> DirectoryStore:
    store: DirectoryStore = request.param(tmp_path / "store")
    push(model, store, plain=True)
    return store


def check(store: DirectoryStore, **options: bool) -> PlainReport:
    return verify_plain(store, "m", engine=ENGINE, **options)


def names(store: DirectoryStore) -> set[str]:
    return {key.removeprefix("plain/m/") for key, _ in store.keys("plain/m/")}


def test_the_folder_is_exactly_the_model(store: DirectoryStore, model: Path) -> None:
    assert names(store) == {p.relative_to(model).as_posix() for p in model.rglob("*")}
    assert all((store.root / "plain/m" / name).read_bytes() == (model / name).read_bytes() for name in names(store))


def test_good_files(store: DirectoryStore) -> None:
    report = check(store)
    assert report.ok
    told = isinstance(store, Telling)
    assert (report.by_digest, report.by_read, report.by_size) == ((4, 0, 0) if told else (0, 4, 0))
    assert not (told and store.read)


def test_remote_says_what_it_could_not_prove(store: DirectoryStore) -> None:
    report = check(store, remote=True)
    assert (report.by_digest, report.by_size) == ((4, 0) if isinstance(store, Telling) else (0, 4))


@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_every_damage_is_found(store: DirectoryStore, how: str) -> None:
    path = store.root / "plain/m" / SHARD
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body[:-1] if how == "cut" else body)
    if how == "gone":
        path.unlink()
    report = check(store)
    (fault,) = report.faults
    assert (fault.path, fault.object) == (SHARD, f"plain/m/{SHARD}")
    error = report.error()
    assert error.where["faults"][0]["path"] == SHARD
    assert "--plain" in error.hint
    assert json.dumps(report.to_json())


def test_what_does_not_belong_is_found(store: DirectoryStore) -> None:
    store.put("plain/m/model-00002-of-00009.safetensors", b"x", sha256="0" * 64, crc64nvme="0" * 16)
    (fault,) = check(store).faults
    assert (fault.path, fault.expected) == ("model-00002-of-00009.safetensors", "no such file")


def test_a_missing_mark_is_found(store: DirectoryStore) -> None:
    store.delete("marks/plain/m")
    (fault,) = check(store).faults
    assert (fault.object, fault.found) == ("marks/plain/m", "no mark")


def test_another_version_is_found(store: DirectoryStore, model: Path) -> None:
    (model / "config.json").write_text("{}")
    push(model, store)  # the chunks only
    faults = {f.object for f in check(store).faults}
    assert faults == {"marks/plain/m", "plain/m/config.json"}


def test_files_of_an_earlier_version_are_removed(store: DirectoryStore, model: Path) -> None:
    """Two shards become one: a tool that takes *.safetensors would load all three."""
    for path in model.glob("*.safetensors"):
        path.unlink()
    safetensors_model(model, layers=1, hidden=32, vocab=64)
    push(model, store, plain=True)
    assert names(store) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert check(store).ok


def test_what_the_store_proves_is_not_sent_again(tmp_path: Path, model: Path) -> None:
    store = Telling(tmp_path / "store")
    push(model, store, plain=True)
    store.delete("marks/plain/m")  # as if it had been killed before the mark
    (store.root / "plain/m" / SHARD).write_bytes(b"half")
    store.sent.clear()
    push(model, store, plain=True)
    assert store.sent == [f"plain/m/{SHARD}"]
    assert check(store).ok


def test_a_store_that_received_other_bytes(tmp_path: Path, model: Path) -> None:
    store = Telling(tmp_path / "store")
    store.lies[f"plain/m/{SHARD}"] = Stored((model / SHARD).stat().st_size, "", "0" * 16)
    with pytest.raises(IntegrityError, match=rf"plain/m/{SHARD}: the store has crc64nvme 0000000000000000, expected crc64nvme"):
        push(model, store, plain=True)
    assert store.size(f"plain/m/{SHARD}") is None
    assert store.size("marks/plain/m") is None


def test_a_connection_that_breaks_is_begun_again(tmp_path: Path, model: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    push(model, store, plain=True)
    asked = []

    class Breaking:
        url = store.url

        def read(self, key: str, *, limit: int) -> Buffer | None:
            asked.append(key)
            if key.endswith(SHARD) and asked.count(key) < 3:
                raise RemoteError("connection reset")
            return store.get(key, limit)

    store.source = lambda: retrying(Breaking(), Policy(tries=3, body_tries=2, base_s=0.001))  # type: ignore[assignment,method-assign]
    assert check(store).ok
    assert asked.count(f"plain/m/{SHARD}") == 3
