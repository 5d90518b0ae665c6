"""Pushing to a full disk, on a real, tiny file system."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.engines.local import LocalEngine
from builder.errors import CapabilityError, RemoteError
from builder.models.resolve import resolve
from builder.models.source import ModelRef
from builder.stores import rclone
from builder.stores.directory import INCOMING, DirectoryStore
from builder.stores.s3 import S3Store
from builder.weights import push, split
from builder.weights.verify import verify
from tests.models import safetensors_model

pytestmark = pytest.mark.root


@pytest.fixture
def tiny(loop_root: None, tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    at = tmp_path / "tiny"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", at], check=True)
    yield at
    subprocess.run(["umount", at], check=True)


def test_a_full_disk_leaves_no_model_and_more_room_finishes_it(tiny: Path, tmp_path: Path) -> None:
    snapshot = resolve(ModelRef(str(safetensors_model(tmp_path / "m", layers=8, hidden=128))))
    plan = split.plan(snapshot, chunk_bytes=64 << 10)
    assert snapshot.size > 1 << 20
    store = DirectoryStore(tiny)
    with pytest.raises(CapabilityError, match=r"no space: \d+ bytes needed, \d+ free") as caught:
        push.push(plan, store, LocalEngine(2), name="m")
    assert caught.value.exit_code == 4
    assert "free space" in caught.value.hint
    assert list(store.keys("refs/")) == list(store.keys("manifests/")) == []
    assert list((tiny / INCOMING).iterdir()) == []
    there = dict(store.keys("chunks/"))
    assert there
    subprocess.run(["mount", "-o", "remount,size=16m", tiny], check=True)
    report = push.push(plan, store, LocalEngine(2), name="m")
    assert report.reused_chunks == len(there)
    assert verify(store, "m", engine=LocalEngine(2)).ok


@pytest.mark.s3
def test_a_server_whose_disk_is_full_keeps_no_half_object_and_more_room_finishes_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = resolve(ModelRef(str(safetensors_model(tmp_path / "m", layers=8, hidden=128))))
    plan = split.plan(snapshot, chunk_bytes=64 << 10)
    (tiny / "bucket").mkdir()
    with rclone.serve(tiny) as endpoint:
        for name, value in endpoint.env.items():
            monkeypatch.setenv(name, value)
        store = S3Store("s3://bucket", endpoint_url=endpoint.endpoint_url, attempts=2)
        with pytest.raises(RemoteError) as caught:
            push.push(plan, store, LocalEngine(2), name="m")
        assert caught.value.exit_code == 5
        assert list(store.keys("refs/")) == list(store.keys("manifests/")) == []
        subprocess.run(["mount", "-o", "remount,size=16m", tiny], check=True)
        there = dict(store.keys("chunks/"))
        assert there
        report = push.push(plan, store, LocalEngine(2), name="m")
        assert report.reused_chunks > 0
        assert verify(store, "m", engine=LocalEngine(2)).ok
