"""Push through a proxy that fails, to a real S3 server: a model appears whole and right, or not at all."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from builder.engines.local import LocalEngine
from builder.errors import RemoteError
from builder.stores import s3 as s3_module
from builder.stores.s3 import S3Store
from builder.weights.push import PushReport
from builder.weights.verify import verify
from tests.bounds import BOUND_S
from tests.conftest import S3
from tests.integration.s3.faulty import Helper, at, cli, good, objects, push_small, same, visible, wrong_chunks
from tests.models import safetensors_model
from tests.servers.proxy import THROTTLES, FaultProxy, first_times, random_faults

pytestmark = pytest.mark.s3
TRANSIENT = (*THROTTLES, "hangup", "hangup-after", "error-after", "cut-request")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.6 MB, about 100 chunks of 16 KiB."""
    return safetensors_model(tmp_path_factory.mktemp("m") / "model", layers=3, hidden=128, vocab=600)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 MB: what the command line's least chunk of 8 MiB still cuts in several."""
    return safetensors_model(tmp_path_factory.mktemp("m") / "model", layers=2, hidden=640, vocab=6000, shards=2)


def send(model: Path, s3: S3, proxy: FaultProxy, attempts: int = s3_module.ATTEMPTS) -> PushReport:
    return push_small(model, S3Store(s3.url, endpoint_url=proxy.endpoint_url, attempts=attempts))


def right(s3: S3, report: PushReport) -> bool:
    """Past the proxy, the name leads to the whole model, and no stored chunk has another one's bytes."""
    found = verify(S3Store(s3.url, endpoint_url=s3.endpoint_url), "m", engine=LocalEngine(4))
    return found.ok and found.digest == report.digest and wrong_chunks(s3) == []


@pytest.mark.parametrize("fault", TRANSIENT)
def test_push_finishes_with_each_kind_of_fault_on_a_twentieth_of_the_requests(s3: S3, model: Path, fault: str) -> None:
    with FaultProxy(s3.endpoint_url, plan=random_faults(0.05, seed=1, faults=(fault,))) as proxy:
        report = send(model, s3, proxy)
    assert proxy.failed[fault] >= 2, "the fault happened"
    assert len(objects(s3, "chunks")) == report.chunks == report.sent_chunks + report.reused_chunks
    assert right(s3, report)


@pytest.mark.parametrize("fault", ["silent", "stall-request", "stall"])
def test_a_connection_that_stalls_is_given_up(s3: S3, model: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """stall: of the look at the model that is there. The others: of what is sent, or asked."""
    monkeypatch.setitem(cast("dict[str, Any]", s3_module._client.__kwdefaults__), "silence_s", 1)
    monkeypatch.setattr(s3_module, "FIRST_SILENCE_S", 1)
    begin = time.monotonic()
    with FaultProxy(s3.endpoint_url) as proxy:
        if fault == "stall":
            send(model, s3, proxy)
        proxy.plan = random_faults(0.02, seed=2, faults=(fault,), methods="HEAD PUT")
        if fault == "stall":
            proxy.plan = first_times("stall", 2, methods="GET LIST")
        report = send(model, s3, proxy)
    assert proxy.failed[fault] > 0
    assert time.monotonic() - begin < BOUND_S
    assert right(s3, report)


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        ("error", ""),
        ("hangup", "can be reached"),
        ("refuse", "s3:PutObject"),
        ("expired", "log in again"),
        ("skewed", "set this machine's clock"),
        ("full", "free space in the bucket"),
    ],
)
def test_a_store_that_stays_broken_midway_ends_the_push_with_5_and_a_rerun_completes(
    s3: S3, model: Path, fault: str, hint: str
) -> None:
    with FaultProxy(s3.endpoint_url) as proxy:
        proxy.plan = lambda asked: fault if asked.method == "PUT" and len(objects(s3, "chunks")) >= 20 else ""
        with pytest.raises(RemoteError) as caught:
            send(model, s3, proxy, attempts=2)
        assert hint in caught.value.hint
        assert visible(s3) == []
        assert wrong_chunks(s3) == []
        there = len(objects(s3, "chunks"))
        proxy.plan = lambda asked: ""
        report = send(model, s3, proxy)
    assert report.reused_chunks == there >= 20
    assert right(s3, report)


@pytest.mark.parametrize(("kind", "fault"), [("chunks", "quota"), ("manifests", "expired"), ("refs", "refuse")])
def test_the_command_exits_with_5_and_publishes_nothing(s3: S3, large: Path, kind: str, fault: str) -> None:
    only = f"/{kind}/"
    with FaultProxy(s3.endpoint_url, plan=first_times(fault, 99, methods="PUT", only=only)) as proxy:
        ended = cli("push", large, "--name", "m", *at(s3, proxy))
        assert (ended.code, ended.error["code"]) == (5, "remote")
        assert objects(s3, "refs") == []
        proxy.plan = lambda asked: ""
        good("push", large, "--name", "m", *at(s3, proxy))
    assert good("verify", "m", *at(s3))["ok"]


@pytest.mark.parametrize("kind", ["manifests", "refs"])
@pytest.mark.parametrize("fault", ["hangup-after", "cut-request"])
def test_the_answer_that_says_it_is_published_is_lost(s3: S3, model: Path, kind: str, fault: str) -> None:
    with FaultProxy(s3.endpoint_url, plan=first_times(fault, 2, methods="PUT", only=f"/{kind}/")) as proxy:
        report = send(model, s3, proxy)
    assert proxy.failed[fault] == 2
    assert right(s3, report)


def test_a_store_that_checks_refuses_what_changed_on_the_way(s3: S3, model: Path) -> None:
    """As AWS does: 400 BadDigest. A new try sends the right bytes; nothing wrong is ever stored."""
    with FaultProxy(s3.endpoint_url, plan=random_faults(0.05, seed=3, faults=("flip-request",)), digests=True) as proxy:
        report = send(model, s3, proxy)
        assert wrong_chunks(s3) == []
    assert proxy.failed["flip-request"] >= 2
    assert right(s3, report)


def test_behind_a_store_that_checks_nothing_readers_find_what_changed_on_the_way_and_repair_mends_it(
    s3: S3, large: Path, tmp_path: Path
) -> None:
    """rclone takes the checksum header and does not look at it: no uploader could tell, but no reader gets the bytes."""
    store = at(s3)
    bad: list[str] = []

    def plan(asked: Any) -> str:
        large = int(asked.headers.get("Content-Length", 0)) > 1 << 20  # a small file lies in the manifest as well
        if asked.method == "PUT" and "/chunks/" in asked.key and large and not bad:
            bad.append(asked.key.rpartition("/")[2])
            return "flip-request"
        return ""

    with FaultProxy(s3.endpoint_url, plan=plan) as proxy:
        ended = cli("push", large, "--name", "m", *at(s3, proxy))
    assert ended.code == 0 or visible(s3) == []
    if ended.code == 0:
        assert wrong_chunks(s3) == bad
        assert {f["object"].rpartition("/")[2] for f in cli("verify", *store).error["where"]["faults"]} == set(bad)
        pulled = cli("pull", "m", "--to", tmp_path / "out", *store)
        assert pulled.code == 3
        assert bad[0] in pulled.error["message"]
        assert not (tmp_path / "out").exists()
        assert good("repair", "m", "--from", large, *store)["repaired_chunks"] == 1
    else:
        good("push", large, "--name", "m", *store)
    good("pull", "m", "--to", tmp_path / "out", *store)
    assert same(large, tmp_path / "out")


@pytest.mark.parametrize("kind", ["manifests", "refs"])
def test_a_manifest_or_ref_damaged_on_the_way_is_no_model_and_the_next_push_mends_it(
    s3: S3, model: Path, tmp_path: Path, kind: str
) -> None:
    with FaultProxy(s3.endpoint_url, plan=first_times("flip-request", methods="PUT", only=f"/{kind}/")) as proxy:
        send(model, s3, proxy)
        assert proxy.failed["flip-request"] == 1
        assert cli("pull", "m", "--to", tmp_path / "out", *at(s3)).code == 3
        assert not (tmp_path / "out").exists()
        again = send(model, s3, proxy)
    assert again.sent_chunks == 0
    good("pull", "m", "--to", tmp_path / "out", *at(s3))
    assert same(model, tmp_path / "out")


@pytest.mark.parametrize("strips", [False, True])
def test_a_remote_verify_says_where_the_store_returns_no_checksums(s3: S3, model: Path, strips: bool) -> None:
    with FaultProxy(s3.endpoint_url, plan=(lambda asked: "strip") if strips else None, digests=True) as proxy:
        report = send(model, s3, proxy)
        found = good("verify", "m", "--remote", *at(s3, proxy))
    assert found["by_size"] == (report.chunks if strips else 0)
    assert found["ok"]


@pytest.mark.parametrize("fault", ["unknown", "strip"])
def test_a_store_without_conditions_or_checksums_is_good_enough(s3: S3, model: Path, fault: str) -> None:
    with FaultProxy(s3.endpoint_url, plan=lambda asked: fault) as proxy:
        report = send(model, s3, proxy)
    assert right(s3, report)


def test_a_store_whose_clock_is_hours_off_is_no_hindrance(s3: S3, model: Path) -> None:
    with FaultProxy(s3.endpoint_url, clock_off=timedelta(hours=30)) as proxy:
        report = send(model, s3, proxy)
        assert send(model, s3, proxy).sent_chunks == 0
    assert right(s3, report)


def test_plain_files_are_whole_and_right(s3: S3, large: Path) -> None:
    with FaultProxy(s3.endpoint_url, plan=random_faults(0.1, seed=5, faults=TRANSIENT)) as proxy:
        good("push", large, "--name", "m", "--plain", *at(s3, proxy))
    assert proxy.failed.total() > 0
    assert same(large, s3.folder / s3.bucket / "plain" / "m")


def test_credentials_that_expire_midway_are_renewed(
    s3: S3, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own helper (credential_process) has new ones by then; the same command goes on with them."""
    helper = Helper(s3, tmp_path, monkeypatch)
    with FaultProxy(s3.endpoint_url, plan=helper.plan(after=6)) as proxy:
        good("push", large, "--name", "m", "--chunk-size", "8MiB", "--concurrency", "2", *at(s3, proxy))
        assert proxy.failed["expired"] > 0
        assert proxy.asked[-1].token == helper.token(1)
    monkeypatch.undo()
    assert wrong_chunks(s3) == []
