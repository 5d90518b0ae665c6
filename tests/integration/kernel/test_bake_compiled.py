"""Captured compile caches on a volume: whole, checked, and where a pod may mount them from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builder import pipeline
from builder.cli.bake.inputs import Asked
from builder.cli.bake.inputs import compiled as asked_for
from builder.config.load import load
from builder.engines.local import LocalEngine
from builder.errors import ConfigError, IntegrityError
from builder.node import disk, workplace
from builder.node.bake import BakePlan, DataVolume, bake
from builder.node.compiled import check_compiled
from builder.node.inputs import CompiledInput
from builder.node.targets import BOTTLEROCKET, COMPILED
from builder.node.volume import RECORD, unlabelled
from builder.stores.directory import DirectoryStore
from builder.transfer import compiled
from tests.leftovers import leftovers
from tests.unit.transfer.test_compiled import cache_root

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root")]
SIZE = 1 << 30


@pytest.fixture
def artifact(tmp_path: Path) -> compiled.Artifact:
    return compiled.pack(cache_root(tmp_path / "root"), tmp_path / "artifact", {})


@contextmanager
def opened(made: DataVolume) -> Iterator[Path]:
    with (
        workplace.workplace(made.path) as place,
        disk.attached(made.path, BOTTLEROCKET.extent(made.size)) as device,
        disk.mounted(device, place.mount) as root,
    ):
        yield root


def test_a_cache_is_on_the_disk_by_its_key(artifact: compiled.Artifact, tmp_path: Path) -> None:
    made = bake(BakePlan(tmp_path / "d.img", compiled=(CompiledInput(artifact.folder),), size=SIZE))
    key = artifact.fingerprint.key
    assert made.compiled == {key: artifact.bytes}
    with opened(made) as root:
        record = json.loads((root / RECORD).read_text())
        assert record["compiled"] == made.compiled
        folder = root / COMPILED / key
        assert compiled.load(folder).fingerprint == artifact.fingerprint
        compiled.unpack(compiled.load(folder), tmp_path / "again")
        assert compiled.counted(tmp_path / "again").keys() == {entry.path for entry in artifact.entries}
        assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o644}
        assert unlabelled(root, BOTTLEROCKET) == []
        assert check_compiled(root, record) == []
        body = (folder / "files.tar").read_bytes()
        (folder / "files.tar").write_bytes(body[:513] + b"X" + body[514:])
        (found,) = check_compiled(root, record)
        assert found.startswith(f"{key}: {folder / 'files.tar'}")
        (folder / "fingerprint.json").unlink()
        assert f"{key}: {folder}: no captured compile cache" in check_compiled(root, record)[0]
        assert check_compiled(root, {"compiled": {"ab": 1}}) == [
            f"{name}: {what}" for name, what in sorted([
                (key, "on the disk, not in the build record"), ("ab", "not on the disk")])]  # fmt: skip
    assert leftovers(tmp_path) == []


def test_a_damaged_cache_is_not_baked(artifact: compiled.Artifact, tmp_path: Path) -> None:
    tar = artifact.folder / "files.tar"
    body = tar.read_bytes()
    tar.write_bytes(body[:513] + b"X" + body[514:])
    with pytest.raises(IntegrityError, match=r"files\.tar"):
        bake(BakePlan(tmp_path / "d.img", compiled=(CompiledInput(artifact.folder),), size=SIZE))
    with pytest.raises(ConfigError, match="no captured compile cache"):
        bake(BakePlan(tmp_path / "d.img", compiled=(CompiledInput(tmp_path),), size=SIZE))
    tar.write_bytes(body)
    with pytest.raises(ConfigError, match="a second compile cache for"):
        bake(BakePlan(tmp_path / "d.img", compiled=(CompiledInput(artifact.folder),) * 2, size=SIZE))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["artifact", "root"]


def test_a_description_names_what_was_captured_last(artifact: compiled.Artifact, tmp_path: Path) -> None:
    """bake.contents: compile-cache takes NAME out of `compile-cache` below weights.store."""
    store = DirectoryStore(tmp_path / "store" / "compile-cache")
    pipeline.capture_compiled(
        tmp_path / "root", "", tmp_path / "second", private=tmp_path, store=store, workers=LocalEngine(1), name="tiny"
    )
    (tmp_path / "builder.yaml").write_text(
        "version: 1\nname: tiny\nmodel: {source: model}\nweights: {store: store}\n"
        "image: {repository: r.example.com/tiny, engine: {name: transformers, version: '5.23.0'}}\n"
        "bake: {contents: [compile-cache]}\n"
    )
    chosen = asked_for(Asked(), load(tmp_path / "builder.yaml"))
    made = bake(BakePlan(tmp_path / "d.img", compiled=chosen, size=SIZE))
    assert list(made.compiled) == [artifact.fingerprint.key]
    short = artifact.fingerprint.short
    (named,) = asked_for(Asked(compiled=(f"tiny@{short}={store.root}",)), None)
    assert (named.reference, named.store) == (f"tiny@{short}", str(store.root))
    assert asked_for(Asked(compiled=(str(artifact.folder),)), None) == (CompiledInput(artifact.folder),)
