"""gc removes what nothing leads to, never what something does, wherever it is killed and whatever runs beside it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from builder.errors import IntegrityError, RemoteError
from builder.format.manifest import FORMAT, manifest_key
from builder.stores.directory import DirectoryStore
from builder.transfer.checksum import sha256_hex
from builder.weights import lease, refs
from builder.weights.gc import GcReport, gc
from tests.bounds import BOUND_S
from tests.models import safetensors_model
from tests.unit.weights.build import ENGINE, push
from tests.unit.weights.dying import age, every_ref_is_complete, killed_everywhere

DAY = 86_400


def version(tmp_path: Path, seed: int) -> Path:
    """Versions share the configs' chunks, and nothing else."""
    return safetensors_model(tmp_path / f"model-{seed}", layers=1, hidden=32, vocab=64, seed=seed)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """Three versions of m, two days apart; the bare name leads to the last."""
    store = DirectoryStore(tmp_path / "store")
    for seed in range(3):
        age(store.root, 2 * DAY) if seed else None
        push(version(tmp_path, seed), store, chunk_bytes=8192)
    age(store.root, 2 * DAY)
    return store


def run(store: DirectoryStore, **options: object) -> GcReport:
    return gc(store, engine=ENGINE, **({"dry_run": False, "keep_last": 1, "wait_s": 0} | options))


def keys(store: DirectoryStore, prefix: str) -> set[str]:
    return {key for key, _ in store.keys(prefix)}


def test_a_dry_run_writes_nothing_and_is_right(store: DirectoryStore) -> None:
    before = {e.key: e for e in store.entries("")}
    would = run(store, dry_run=True)
    assert {e.key: e for e in store.entries("")} == before
    did = run(store)
    same = ("manifests", "signatures", "chunks", "bytes", "kept_manifests", "kept_chunks", "kept_bytes", "foreign")
    assert [getattr(would, n) for n in same] == [getattr(did, n) for n in same]
    assert len(before) - len(keys(store, "")) == len(did.manifests) + did.chunks
    assert sum(e.size for e in before.values()) - sum(e.size for e in store.entries("")) == did.bytes


def test_it_removes_exactly_what_nothing_leads_to(store: DirectoryStore) -> None:
    named = every_ref_is_complete(store.root)
    report = run(store)
    assert (len(report.manifests), report.kept_manifests) == (2, 1)
    assert every_ref_is_complete(store.root) == named
    assert keys(store, "manifests/") == {manifest_key(named["m"])}
    assert run(store).chunks == 0  # nothing left over
    assert len(keys(store, "chunks/")) == report.kept_chunks
    assert keys(store, "leases/") == set()


def test_shared_chunks_stay(store: DirectoryStore, tmp_path: Path) -> None:
    before = len(keys(store, "chunks/"))
    report = run(store)
    assert 0 < report.chunks < before
    assert before == report.chunks + report.kept_chunks


@pytest.mark.parametrize(("keep_last", "left"), [(0, 1), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_the_newest_versions_stay(store: DirectoryStore, keep_last: int, left: int) -> None:
    run(store, keep_last=keep_last)
    assert len(keys(store, "manifests/")) == left
    assert "sha256:" in every_ref_is_complete(store.root)["m"]


def test_an_old_version_with_a_tag_stays(store: DirectoryStore) -> None:
    oldest = min(store.entries("manifests/"), key=lambda e: e.modified).key
    refs.tag(store, "sha256:" + oldest.rpartition("/")[2], "v1")
    run(store)
    assert oldest in keys(store, "manifests/")
    assert every_ref_is_complete(store.root).keys() == {"m", "m@v1"}
    refs.delete(store, "m@v1")
    assert len(run(store).manifests) == 1
    assert every_ref_is_complete(store.root).keys() == {"m"}


def test_what_is_younger_than_the_grace_stays(store: DirectoryStore) -> None:
    """Ages here: 6, 4 and 2 days."""
    report = run(store, grace_s=5 * DAY)
    assert (len(report.manifests), report.young_manifests) == (1, 1)
    assert report.young_chunks == 0  # those of the young version are needed while it is there
    loose = "chunks/sha256/ab/" + "ab" * 32
    store.put(loose, b"half a push", sha256="ab" * 32, crc64nvme="0" * 16)
    report = run(store, grace_s=60)
    assert (report.young_chunks, report.young_bytes) == (1, 11)
    assert loose in keys(store, "chunks/")
    age(store.root, 61, loose)
    assert run(store, grace_s=60).chunks == 1


def test_ages_are_by_the_stores_clock(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock is a year ahead."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 365 * DAY)
    assert run(store, grace_s=30 * DAY).manifests == ()


def test_a_signature_goes_with_its_manifest_and_stays_with_it(store: DirectoryStore) -> None:
    for key in keys(store, "manifests/"):
        store.put(f"{key}.sig", b"signed", sha256="0" * 64, crc64nvme="0" * 16)
    orphan = f"manifests/sha256/{'0' * 64}.sig"
    store.put(orphan, b"signed", sha256="0" * 64, crc64nvme="0" * 16)
    report = run(store)
    assert report.signatures == 2  # the orphan is young
    current = manifest_key(refs.read(store, "m").digest)  # type: ignore[union-attr]
    assert keys(store, "manifests/") == {current, f"{current}.sig", orphan}
    age(store.root, 2 * DAY)
    assert run(store).signatures == 1
    assert keys(store, "manifests/") == {current, f"{current}.sig"}


def test_foreign_objects_are_counted_and_left(store: DirectoryStore) -> None:
    some = next(iter(keys(store, "chunks/"))).rpartition("/")[2]
    foreign = {
        "chunks/readme",
        f"chunks/sha256/{some[2:4] if some[:2] != some[2:4] else 'zz'}/{some}",  # another shard than its name says
        f"chunks/sha256/{some[:2]}/{some}.bak",
        f"chunks/sha256/{some[:2]}/{some.upper()}x",
        "manifests/sha256/latest",
        f"manifests/sha256/{some}.sig.sig",
        f"manifests/sha256/{some}/x",
    }
    outside = {"plain/m/x", "marks/plain/m", "other", "refs.txt"}
    for key in foreign | outside:
        store.put(key, b"x", sha256="0" * 64, crc64nvme="0" * 16)
    age(store.root, 900 * DAY)
    report = run(store)
    assert report.foreign == len(foreign)
    assert foreign | outside <= keys(store, "")


def test_a_damaged_version_that_nothing_leads_to_goes(store: DirectoryStore) -> None:
    named = {manifest_key(d) for d in every_ref_is_complete(store.root).values()}
    victim = min(keys(store, "manifests/") - named)
    (store.root / victim).write_bytes(b"{")
    age(store.root, DAY + 60, victim)
    report = run(store, keep_last=9)
    assert [m.name for m in report.manifests] == [""]


def unreadable(store: DirectoryStore, how: str) -> str:
    """Something that gc does not understand; returns what it says."""
    current = store.root / manifest_key(refs.read(store, "m").digest)  # type: ignore[union-attr]
    if how == "a damaged manifest":
        current.write_bytes(current.read_bytes()[:-1] + b" ")
        return "manifest is sha256:"
    if how == "no manifest":
        current.unlink()
        return "which is not there"
    if how == "a damaged ref":
        (store.root / "refs/m").write_bytes(b"sha256:short\n")
        return "refs/m: not a ref that this builder understands"
    if how == "a strange name below refs/":
        (store.root / "refs/some").mkdir()
        (store.root / "refs/some/file").write_bytes(b"x")
        return "refs/some/file: not a ref"
    body = json.dumps({"format": FORMAT + 1}).encode()
    key = manifest_key("sha256:" + sha256_hex(body))
    store.put(key, body, sha256=sha256_hex(body), crc64nvme="0" * 16)
    if how == "a newer format behind a ref":
        refs.write(store, "n", "sha256:" + sha256_hex(body))
    return f"manifest has format {FORMAT + 1}"


@pytest.mark.parametrize(
    "how",
    [
        "a damaged manifest",
        "no manifest",
        "a damaged ref",
        "a strange name below refs/",
        "a newer format behind a ref",
        "a newer format without one",
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_what_it_does_not_understand_stops_it(store: DirectoryStore, how: str, dry_run: bool) -> None:
    said = unreadable(store, how)
    age(store.root, 900 * DAY)
    before = keys(store, "")
    with pytest.raises(IntegrityError) as caught:
        run(store, dry_run=dry_run, keep_last=0)
    assert said in caught.value.message
    assert "nothing was deleted" in caught.value.message
    assert caught.value.hint
    assert keys(store, "") == before


def test_a_mistyped_folder_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="no such folder"):
        run(DirectoryStore(tmp_path / "nope"))
    assert not (tmp_path / "nope").exists()


def test_it_waits_for_a_push_and_then_gives_up(store: DirectoryStore) -> None:
    before = keys(store, "")
    with lease.hold(store, "push"), pytest.raises(RemoteError, match="in use: push by process"):
        run(store, wait_s=0.05)
    assert keys(store, "") == before


def test_a_push_that_starts_meanwhile_waits(store: DirectoryStore, tmp_path: Path) -> None:
    """The old version is pushed again while its chunks are being deleted. It relies on none of them."""
    begun, go = threading.Event(), threading.Event()

    class Slow(DirectoryStore):
        def delete(self, key: str) -> None:
            if key.startswith("chunks/"):
                begun.set()
                go.wait(BOUND_S)
            super().delete(key)

    collector = threading.Thread(target=lambda: run(Slow(store.root)))
    collector.start()
    assert begun.wait(BOUND_S)
    pusher = threading.Thread(target=lambda: push(version(tmp_path, 0), store, chunk_bytes=8192))
    pusher.start()
    while not keys(store, "leases/push/"):
        time.sleep(0.01)
    time.sleep(0.1)
    go.set()
    collector.join(60)
    pusher.join(60)
    assert every_ref_is_complete(store.root)["m"]
    assert keys(store, "leases/") == set()


def test_killed_anywhere_it_leaves_no_incomplete_model(store: DirectoryStore, tmp_path: Path) -> None:
    named = every_ref_is_complete(store.root)
    done = 0
    for left in killed_everywhere(store.root, tmp_path / "killed", lambda dying: run(dying)):
        assert every_ref_is_complete(left) == named
        for key in keys(DirectoryStore(left), "manifests/"):  # those without a ref too: complete as long as they are there
            refs.write(DirectoryStore(left), "probe", "sha256:" + key.rpartition("/")[2])
            every_ref_is_complete(left)
            refs.delete(DirectoryStore(left), "probe", force=True)
        run(DirectoryStore(left))
        assert every_ref_is_complete(left) == named
        assert len(keys(DirectoryStore(left), "manifests/")) == 1
        done += 1
    assert done > 20


def test_a_lost_lease_stops_the_deleting(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two deletes, and then the renewals have failed for too long."""
    required = []

    def require(self: lease.Held) -> None:
        required.append(1)
        if len(required) > 2:
            raise RemoteError("the lease of this gc could not be renewed")

    monkeypatch.setattr(lease.Held, "require", require)
    before = len(keys(store, ""))
    with pytest.raises(RemoteError, match="could not be renewed"):
        run(store)
    assert before - len(keys(store, "")) <= 2
    every_ref_is_complete(store.root)


def test_the_report_is_json(store: DirectoryStore) -> None:
    data = json.loads(json.dumps(run(store).to_json()))
    assert data["dry_run"] is False
    assert {"digest", "name", "modified"} == set(data["manifests"][0])
