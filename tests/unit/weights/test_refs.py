"""Names of versions: what a name may be, what moves it, what a listing says."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.errors import ConfigError, IntegrityError, RemoteError
from builder.format.manifest import manifest_key, ref_key
from builder.stores.directory import DirectoryStore
from builder.weights import lease, refs
from builder.weights.listing import describe, ls
from tests.models import safetensors_model
from tests.unit.weights.build import push
from tests.unit.weights.dying import every_ref_is_complete, killed_everywhere


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "store")
    for seed in (1, 2):
        push(safetensors_model(tmp_path / f"v{seed}", layers=1, hidden=32, vocab=64, seed=seed), store, chunk_bytes=8192)
        if seed == 1:
            refs.tag(store, "m", "v1")
    return store


@pytest.mark.parametrize("bad", ["", "@", "m@", "@v1", "m@a@b", "../m", "m/x", "m@../x", ".m", "m@-", "m\n", "a" * 129])
def test_names_that_are_none(store: DirectoryStore, bad: str) -> None:
    for act in (
        lambda: ref_key(bad),
        lambda: refs.write(store, bad, "sha256:" + "0" * 64),
        lambda: refs.read(store, bad),
        lambda: refs.delete(store, bad, force=True),
    ):
        with pytest.raises(ConfigError, match="is not a model reference"):
            act()


@pytest.mark.parametrize("bad", ["", "m@v2", "a/b", ".x", "x" * 129, "sha256:" + "0" * 64])
def test_tags_that_are_none(store: DirectoryStore, bad: str) -> None:
    with pytest.raises(ConfigError, match="does not match"):
        refs.tag(store, "m", bad)


def test_a_tag_stays_when_the_name_moves(store: DirectoryStore) -> None:
    found = every_ref_is_complete(store.root)
    assert found.keys() == {"m", "m@v1"}
    assert found["m"] != found["m@v1"]


def test_a_tag_of_every_kind_of_ref(store: DirectoryStore) -> None:
    digest = every_ref_is_complete(store.root)["m"]
    for ref, new in (("m", "a"), ("m@a", "b"), (digest, "c"), ("", "d")):
        report = refs.tag(store, ref, new)
        assert (report.ref, report.digest, report.before, report.changed) == (f"m@{new}", digest, "", True)


def test_a_tag_moves_only_by_force(store: DirectoryStore) -> None:
    before = every_ref_is_complete(store.root)
    with pytest.raises(ConfigError, match=r"m@v1 is sha256:.* already, not") as caught:
        refs.tag(store, "m", "v1")
    assert "--force" in caught.value.hint
    assert every_ref_is_complete(store.root) == before
    report = refs.tag(store, "m", "v1", force=True)
    assert (report.before, report.digest) == (before["m@v1"], before["m"])
    assert every_ref_is_complete(store.root)["m@v1"] == before["m"]


def test_the_same_tag_again_writes_nothing(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refs.tag(store, "m", "same")
    monkeypatch.setattr(DirectoryStore, "_write", None)
    assert not refs.tag(store, "m", "same").changed


def test_a_dry_run_writes_nothing(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectoryStore, "_write", None)
    monkeypatch.setattr(DirectoryStore, "delete", None)
    assert refs.tag(store, "m", "new", dry_run=True).changed
    assert refs.delete(store, "m@v1", dry_run=True).changed


def test_no_tag_for_what_is_not_there(store: DirectoryStore) -> None:
    for ref in ("other", "m@v9", "sha256:" + "0" * 64):
        with pytest.raises(IntegrityError, match="not there"):
            refs.tag(store, ref, "x")


def test_a_tag_waits_for_a_gc(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version could be gone by the time the tag is written."""
    monkeypatch.setitem(lease.WAIT_S, "push", 0.05)
    with lease.hold(store, "gc"), pytest.raises(RemoteError, match="in use: gc"):
        refs.tag(store, "m", "new")
    assert refs.read(store, "m@new") is None


def test_delete(store: DirectoryStore) -> None:
    assert refs.delete(store, "m@v1").digest == ""
    assert every_ref_is_complete(store.root).keys() == {"m"}
    with pytest.raises(IntegrityError, match="no ref 'm@v1'"):
        refs.delete(store, "m@v1")
    with pytest.raises(ConfigError, match="m is the model itself") as caught:
        refs.delete(store, "m")
    assert "--force" in caught.value.hint
    refs.delete(store, "m", force=True)
    assert list(ls(store)) == []


def test_a_damaged_ref_can_be_deleted_and_moved(store: DirectoryStore) -> None:
    (store.root / "refs/m@v1").write_text("nonsense")
    assert refs.read(store, "m@v1") == refs.Ref("m@v1", "")
    with pytest.raises(ConfigError, match="m@v1 is damaged already"):
        refs.tag(store, "m", "v1")
    refs.tag(store, "m", "v1", force=True)
    (store.root / "refs/m@v1").write_text("nonsense")
    refs.delete(store, "m@v1")


def test_killed_anywhere_a_tag_leads_to_one_version_or_the_other(store: DirectoryStore, tmp_path: Path) -> None:
    before = every_ref_is_complete(store.root)
    seen = set()
    for left in killed_everywhere(store.root, tmp_path / "killed", lambda dying: refs.tag(dying, "m", "v1", force=True)):
        found = every_ref_is_complete(left)
        assert found["m@v1"] in (before["m"], before["m@v1"])
        seen.add(found["m@v1"])
        refs.tag(DirectoryStore(left), "m", "v1", force=True)
        assert every_ref_is_complete(left)["m@v1"] == before["m"]
    assert len(seen) == 2


def test_the_listing(store: DirectoryStore) -> None:
    refs.tag(store, "m", "stable")
    refs.tag(store, "m", "2026")
    digest = every_ref_is_complete(store.root)
    store.put(manifest_key(digest["m"]) + ".sig", b"x", sha256="0" * 64, crc64nvme="0" * 16)
    new, old = ls(store)
    assert (new.ref, new.name, new.current, new.tags, new.signed) == ("m", "m", True, ("2026", "stable"), True)
    assert (old.ref, old.name, old.current, old.tags, old.signed) == ("m@v1", "m", False, ("v1",), False)
    assert (new.digest, old.digest) == (digest["m"], digest["m@v1"])
    assert new.pushed == (store.root / manifest_key(new.digest)).stat().st_mtime
    assert new.files == 3
    assert new.to_json()["tags"] == ["2026", "stable"]


def test_the_listing_names_what_cannot_be_read(store: DirectoryStore) -> None:
    (store.root / "refs/some").mkdir()
    (store.root / "refs/some/file").write_text("x")
    (store.root / "refs/broken").write_text("x" * 10_000)
    errors = {e.ref: e.error for e in ls(store)}
    assert errors.pop("m") == errors.pop("m@v1") == ""
    assert errors.keys() == {"some/file", "broken"}
    assert all(errors.values())


def test_a_description_adds_up(store: DirectoryStore) -> None:
    found = describe(store, "m")
    tensors = [t for f in found.manifest.files for t in f.tensors]
    assert sum(g.tensors for g in found.groups) == len(tensors)
    assert sum(g.bytes for g in found.groups) == sum(t.size for t in tensors)
    assert [g.name for g in found.groups] == ["embed", "layer.0", "final"]
    assert found.to_json()["digest"] == found.manifest.digest
