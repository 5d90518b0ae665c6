"""A copy moves only what is missing, hashes all of it, and leaves no half model wherever it is killed."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from builder.engines.local import LocalEngine
from builder.errors import CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.format.manifest import manifest_key
from builder.stores.base import Reader
from builder.stores.directory import DirectoryStore
from builder.stores.null import NullStore
from builder.transfer.checksum import Buffer
from builder.transfer.manifests import read_manifest
from builder.weights import copy as copying
from builder.weights import lease, refs, sign
from builder.weights.copy import CopyReport, copy
from tests.models import safetensors_model
from tests.unit.weights.build import ENGINE, push
from tests.unit.weights.dying import every_ref_is_complete, killed_everywhere

MEMORY = 256 << 20


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "store")
    push(safetensors_model(tmp_path / "v1", layers=1, hidden=32, vocab=64, seed=1), store, chunk_bytes=8192)
    refs.tag(store, "m", "v1")
    push(safetensors_model(tmp_path / "v2", layers=1, hidden=32, vocab=64, seed=2), store, chunk_bytes=8192)
    return store


@pytest.fixture
def to(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "to")


def run(store: DirectoryStore, ref: str, to: DirectoryStore, **options: object) -> CopyReport:
    return copy(store, ref, to, **({"engine": ENGINE, "memory": MEMORY} | options))  # type: ignore[arg-type]


def everything(store: DirectoryStore) -> dict[str, bytes]:
    return {key: (store.root / key).read_bytes() for key, _ in store.keys("")} if store.root.exists() else {}


def test_a_copy_is_the_model(store: DirectoryStore, to: DirectoryStore) -> None:
    report = run(store, "m", to)
    assert every_ref_is_complete(to.root) == {"m": every_ref_is_complete(store.root)["m"]}
    assert (report.sent_chunks, report.reused_chunks, report.guarded) == (report.chunks, 0, True)
    assert everything(to).items() <= everything(store).items()
    assert not list(store.keys("leases/"))
    assert not list(to.keys("leases/"))


def test_only_what_is_missing_moves(store: DirectoryStore, to: DirectoryStore, tmp_path: Path) -> None:
    run(store, "m@v1", to)
    report = run(store, "m", to)
    assert 0 < report.sent_chunks < report.chunks
    assert report.sent_chunks + report.reused_chunks == report.chunks
    assert every_ref_is_complete(to.root) == every_ref_is_complete(store.root)
    again = run(store, "m", to)
    assert (again.sent_chunks, again.sent_bytes) == (0, 0)


def test_a_dry_run_writes_nothing_and_is_right(store: DirectoryStore, to: DirectoryStore) -> None:
    before = everything(store)
    would = run(store, "m", to, dry_run=True)
    assert not to.root.exists()
    assert everything(store) == before
    did = run(store, "m", to)
    assert (would.sent_chunks, would.sent_bytes, would.refs) == (did.sent_chunks, did.sent_bytes, did.refs)


def test_a_digest_needs_a_tag(store: DirectoryStore, to: DirectoryStore) -> None:
    digest = every_ref_is_complete(store.root)["m@v1"]
    with pytest.raises(ConfigError, match="a digest is no name"):
        run(store, digest, to)
    assert run(store, digest, to, tag="old").refs == ("m@old",)
    assert every_ref_is_complete(to.root) == {"m@old": digest}


def test_tags_move_only_by_force_and_names_always(store: DirectoryStore, to: DirectoryStore) -> None:
    new, old = (every_ref_is_complete(store.root)[r] for r in ("m", "m@v1"))
    run(store, old, to, tag="stable")
    run(store, "m@v1", to)
    with pytest.raises(ConfigError, match="m@stable is sha256:"):
        run(store, "m", to, tag="stable")
    assert "m" not in every_ref_is_complete(to.root)
    run(store, "m", to, tag="stable", force=True)
    assert every_ref_is_complete(to.root) == {"m": new, "m@stable": new, "m@v1": old}


@pytest.mark.parametrize("tag", ["", "a@b", "../x"])
def test_tags_that_are_none(store: DirectoryStore, to: DirectoryStore, tag: str) -> None:
    digest = every_ref_is_complete(store.root)["m"]
    with pytest.raises(ConfigError):
        run(store, digest, to, tag=tag)
    assert not to.root.exists()


def test_a_damaged_chunk_never_arrives(store: DirectoryStore, to: DirectoryStore) -> None:
    """Same size, one bit: all such chunks are named together, and no ref is written."""
    chunks = [c for _, c in read_manifest(Reader(store), "m").chunks() if c.size > 100]
    for chunk in chunks[:2]:
        path = store.root / chunk.key
        body = bytearray(path.read_bytes())
        body[50] ^= 4
        path.write_bytes(body)
    (store.root / chunks[2].key).unlink()
    with pytest.raises(IntegrityError, match=r"3 of \d+ chunks could not be copied") as caught:
        run(store, "m", to)
    assert {f["object"] for f in caught.value.where["faults"]} == {c.key for c in chunks[:3]}
    assert all(f["tensors"] for f in caught.value.where["faults"] if f["path"].endswith(".safetensors") and f["start"] > 4000)
    assert not list(to.keys("refs/"))
    assert not list(to.keys("manifests/"))
    assert not {c.key for c in chunks[:3]} & {key for key, _ in to.keys("chunks/")}


def test_an_object_of_another_size_there_is_named(store: DirectoryStore, to: DirectoryStore) -> None:
    _, chunk = next(iter(read_manifest(Reader(store), "m").chunks()))
    to.put(chunk.key, b"short", sha256="0" * 64, crc64nvme="0" * 16)
    with pytest.raises(IntegrityError, match="the store has 5 bytes there") as caught:
        run(store, "m", to)
    assert caught.value.where["faults"][0]["object"] == chunk.key


def test_a_damaged_manifest_there_is_replaced(store: DirectoryStore, to: DirectoryStore) -> None:
    digest = run(store, "m", to).digest
    path = to.root / manifest_key(digest)
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    run(store, "m", to)
    every_ref_is_complete(to.root)


def test_signatures_come_along_and_those_there_stay(store: DirectoryStore, to: DirectoryStore) -> None:
    keys = []
    for at in (store, to):
        pem, public = sign.generate()
        if at is to:
            run(store, "m", to)
        sign.sign_ref(at, "m", sign.private_key(pem, at="key"))
        keys.append(public)
    report = run(store, "m", to)
    assert report.signed
    for key in keys:
        assert sign.require(to.source(), "m", [key]).digest == report.digest


def test_the_order_is_chunks_manifest_refs(store: DirectoryStore, tmp_path: Path) -> None:
    class Noting(DirectoryStore):
        written: list[str] = []  # noqa: RUF012

        def _write(self, key: str, *args: object, **options: object) -> None:
            super()._write(key, *args, **options)  # type: ignore[arg-type]
            self.written.append(key.partition("/")[0])

    to = Noting(tmp_path / "noted")
    run(store, "m", to)
    order = [k for k in to.written if k != "leases"]
    assert order == sorted(order, key=["chunks", "manifests", "refs"].index)
    assert to.written[0] == "leases"


def test_killed_anywhere_the_rerun_finishes(store: DirectoryStore, tmp_path: Path) -> None:
    """Killed at each call to the second store, which has one older version already."""
    start = tmp_path / "start"
    run(store, "m@v1", DirectoryStore(start))
    whole = every_ref_is_complete(store.root)
    for left in killed_everywhere(start, tmp_path / "killed", lambda dying: run(store, "m", dying)):
        found = every_ref_is_complete(left)
        assert found in ({"m@v1": whole["m@v1"]}, whole)
        run(store, "m", DirectoryStore(left))
        assert every_ref_is_complete(left) == whole


def test_a_first_store_that_may_only_be_read(
    store: DirectoryStore, to: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an S3 store answers without s3:PutObject, and as a folder of another user does."""

    class ReadOnly(DirectoryStore):
        error: Exception

        def _write(self, *args: object, **options: object) -> None:
            raise self.error

    source = ReadOnly(store.root)
    for n, error in enumerate(
        (RemoteError("403 AccessDenied", where={"status": 403}), CapabilityError("Permission denied"), RemoteError("503"))
    ):
        source.error = error
        if n == 2:
            with pytest.raises(RemoteError, match="503"):
                run(source, "m", to)
        else:
            assert not run(source, "m", to).guarded
            every_ref_is_complete(to.root)


def test_a_second_store_that_may_not_be_written_says_so(store: DirectoryStore, tmp_path: Path) -> None:
    class ReadOnly(DirectoryStore):
        def _write(self, *args: object, **options: object) -> None:
            raise CapabilityError("Read-only file system", hint="check the folder's owner and permissions")

    with pytest.raises(CapabilityError, match="Read-only"):
        run(store, "m", ReadOnly(tmp_path / "ro"))


def test_memory_is_bounded(store: DirectoryStore, to: DirectoryStore) -> None:
    """Room for two chunks at once, though sixteen threads would take more."""
    largest = max(c.size for _, c in read_manifest(Reader(store), "m").chunks())
    report = run(store, "m", to, engine=LocalEngine(16), memory=2 * largest)
    assert 0 < report.peak_bytes <= 2 * largest
    every_ref_is_complete(to.root)


def test_both_stores_are_held(store: DirectoryStore, to: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    real = copying._read

    def look(source: object, chunk: object) -> Buffer:
        seen.append((len(list(store.keys("leases/push/"))), len(list(to.keys("leases/push/")))))
        return real(source, chunk)  # type: ignore[arg-type]

    monkeypatch.setattr(copying, "_read", look)
    run(store, "m", to)
    assert set(seen) == {(1, 1)}


def test_a_gc_of_the_second_store_is_waited_for(store: DirectoryStore, to: DirectoryStore) -> None:
    done = threading.Event()

    def go() -> None:
        run(store, "m", to)
        done.set()

    with lease.hold(to, "gc"):
        copier = threading.Thread(target=go)
        copier.start()
        assert not done.wait(0.5)
        assert not list(to.keys("chunks/"))
    copier.join(60)
    assert done.is_set()


def test_into_the_store_it_came_from(store: DirectoryStore) -> None:
    report = run(store, "m", DirectoryStore(store.root), tag="same")
    assert report.sent_chunks == 0
    assert report.refs == ("m", "m@same")


def test_a_store_that_keeps_nothing_has_no_model() -> None:
    with pytest.raises(RemoteError, match="keeps nothing"):
        copy(NullStore(), "m", NullStore(), engine=ENGINE, memory=MEMORY)


def test_the_report_is_json(store: DirectoryStore, to: DirectoryStore) -> None:
    data = json.loads(json.dumps(run(store, "m", to).to_json()))
    assert data["refs"] == ["m"]
