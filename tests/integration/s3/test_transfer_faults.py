"""Real HTTP, real obstore, a server that fails on order. No wrong byte gets through, and nothing hangs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from builder.errors import IntegrityError, RemoteError
from builder.transfer.manifests import names, read_manifest, resolve
from builder.transfer.restore import restore
from builder.transfer.retry import Policy, RetryingSource, retrying
from builder.transfer.source import Limits, Source, open_source
from tests.bounds import BOUND_S
from tests.conftest import S3
from tests.servers.objects import FAULTS, TRANSIENT, ObjectServer, Plan, first_times, random_faults
from tests.unit.transfer.build import random_model

LIMITS = Limits(connect_s=2.0, silence_s=0.5, floor_bytes_s=1000, window_s=0.2)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anything")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")


def s3_source(server: ObjectServer) -> Source:
    return open_source("s3://bucket/store", endpoint_url=server.endpoint_url, region="us-east-1", limits=LIMITS)


def quick(source: Source) -> RetryingSource:
    return retrying(source, Policy(base_s=0.001, cap_s=0.01))


def serve(tmp_path: Path, plan: Plan | None = None) -> ObjectServer:
    built = random_model(files=3, size=40_000, chunk_bytes=2_000)
    built.store(tmp_path / "s3/bucket/store")
    return ObjectServer(tmp_path / "s3", plan=plan)


@pytest.mark.parametrize("fault", TRANSIENT)
def test_restore_finishes_with_each_kind_of_fault_on_a_twentieth_of_the_reads(tmp_path: Path, fault: str) -> None:
    built = random_model(files=3, size=40_000, chunk_bytes=2_000)
    with serve(tmp_path, random_faults(0.05, seed=1, faults=(fault,))) as server:
        start = time.monotonic()
        report = restore(built.manifest, quick(s3_source(server)), tmp_path / "m")
    assert server.failed[fault] > 0, "the fault happened"
    assert built.same(tmp_path / "m")
    assert report.fetched_chunks == 60
    assert time.monotonic() - start < BOUND_S


def test_restore_finishes_with_all_kinds_mixed_on_a_third_of_the_reads(tmp_path: Path) -> None:
    built = random_model(files=3, size=40_000, chunk_bytes=2_000)
    instant = tuple(f for f in TRANSIENT if f not in ("short", "flip", "swap", "stall", "trickle", "silent"))
    with serve(tmp_path, random_faults(0.33, seed=2, faults=instant)) as server:
        restore(built.manifest, quick(s3_source(server)), tmp_path / "m")
    assert set(server.failed) == set(instant)
    assert built.same(tmp_path / "m")


@pytest.mark.parametrize("fault", ["flip", "swap", "short"])
def test_wrong_bytes_every_time_are_integrity(tmp_path: Path, fault: str) -> None:
    built = random_model(files=3, size=40_000, chunk_bytes=2_000)
    victim = built.manifest.files[1].chunks[4]
    with (
        serve(tmp_path, first_times(fault, 99, only=victim.sha256)) as server,
        pytest.raises(IntegrityError, match=r"part-1\.safetensors, tensors layers\.4\.w") as caught,
    ):
        restore(built.manifest, quick(s3_source(server)), tmp_path / "m")
    assert server.failed[fault] == 3
    assert caught.value.where["key"] == victim.key
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("error", "500 InternalError"),
        ("busy", "503 SlowDown"),
        ("refuse", "403 AccessDenied"),
        ("hangup", "connection closed before an answer"),
        ("cut", "connection lost in the middle of the body"),
        ("stall", "timed out"),
        ("trickle", "stalled: "),
        ("silent", "timed out"),
    ],
)
def test_one_read_ends_in_bounded_time_and_names_key_and_store(tmp_path: Path, fault: str, said: str) -> None:
    key = random_model(files=3, size=40_000, chunk_bytes=2_000).manifest.files[0].chunks[0].key
    with serve(tmp_path, first_times(fault, 99)) as server:
        start = time.monotonic()
        with pytest.raises(RemoteError, match=said) as caught:
            s3_source(server).read(key, limit=2_000)
    assert time.monotonic() - start < BOUND_S
    assert caught.value.where["key"] == key
    assert caught.value.message.startswith(f"s3://bucket/store/{key}: ")
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert caught.value.where["endpoint"] == server.endpoint_url


def test_a_longer_object_is_not_read(tmp_path: Path) -> None:
    key = random_model(files=3, size=40_000, chunk_bytes=2_000).manifest.files[0].chunks[0].key
    with serve(tmp_path, first_times("long", 99)) as server:
        with pytest.raises(IntegrityError, match="2001 bytes, expected at most 2000"):
            s3_source(server).read(key, limit=2_000)
        assert server.body_bytes <= 2_001


def test_missing_is_none_and_only_missing_is(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        assert s3_source(server).read("chunks/none", limit=10) is None
        assert open_source(f"{server.endpoint_url}/bucket/store").read("refs/none", limit=10) is None
    with pytest.raises(RemoteError, match="cannot connect: Connection refused") as caught:
        s3_source(server).read("chunks/none", limit=10)
    assert caught.value.hint.startswith(f"check that {server.endpoint_url} can be reached")


@pytest.mark.s3
def test_no_bucket_is_said_once_with_what_to_do(s3: S3) -> None:
    with pytest.raises(RemoteError, match=r"\As3://nobkt: 404 NoSuchBucket\Z") as caught:
        open_source("s3://nobkt", endpoint_url=s3.endpoint_url, region="us-east-1").read("refs/m", limit=9)
    assert caught.value.hint.startswith("make the bucket")


def test_a_silent_store_is_asked_twice_for_its_ref(tmp_path: Path) -> None:
    now = 0.0

    class Silent:
        url, asked = "s3://b", 0

        def read(self, key: str, *, limit: int) -> None:
            nonlocal now
            now += 19.9
            self.asked += 1
            raise RemoteError("timed out")

    silent = Silent()
    source = retrying(silent, clock=lambda: now, sleep=lambda s: None, rng=lambda: 0.0)
    with pytest.raises(RemoteError, match="timed out"):
        read_manifest(source, "m")
    assert silent.asked == 2


def test_the_same_store_over_plain_http(tmp_path: Path) -> None:
    built = random_model(files=3, size=40_000, chunk_bytes=2_000)
    with serve(tmp_path) as server:
        source = open_source(f"{server.endpoint_url}/bucket/store?token=secret", limits=LIMITS)
        assert "secret" not in source.url
        assert names(source) is None
        manifest = read_manifest(source, "m@r1")
        restore(manifest, source, tmp_path / "m")
    assert built.same(tmp_path / "m")


def test_a_manifest_is_found_by_name_revision_digest_or_alone(tmp_path: Path) -> None:
    built = random_model(files=3, size=40_000, chunk_bytes=2_000)
    with serve(tmp_path) as server:
        source = s3_source(server)
        for ref in ("", "m", "m@r1", built.manifest.digest):
            assert resolve(source, ref) == built.manifest.digest
            assert read_manifest(source, ref).digest == built.manifest.digest


def test_a_manifest_damaged_on_the_wire_is_read_again(tmp_path: Path) -> None:
    built = random_model(files=3, size=40_000, chunk_bytes=2_000)
    with serve(tmp_path, first_times("flip", 2, only="manifests/")) as server:
        assert read_manifest(quick(s3_source(server)), "m").digest == built.manifest.digest


def test_every_fault_of_the_server_is_used_here() -> None:
    assert set(FAULTS) == {*TRANSIENT, "refuse", "missing", "long"}
