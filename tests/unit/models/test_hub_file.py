"""One file of the hub over a line that fails: every byte right, or a bounded error that says what happened."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from builder.engines.local import LocalEngine
from builder.errors import IntegrityError, RemoteError
from builder.models import hub, hub_http
from builder.models.hub_file import HubFile
from builder.models.hub_http import Ranges
from builder.models.source import ModelRef, ModelSnapshot
from builder.stores.directory import DirectoryStore
from builder.transfer.retry import Policy
from builder.transfer.source import Limits
from builder.weights import push, split
from tests.bounds import BOUND_S
from tests.servers.hub import REPO, TRANSIENT, HubServer
from tests.servers.objects import first_times, random_faults

LARGE = random.Random(1).randbytes(300_000)
SMALL = b'{"small": true}' * 20
QUICK = Policy(base_s=0.01, cap_s=0.05, deadline_s=BOUND_S)
SHORT = Limits(connect_s=2.0, silence_s=0.3, floor_bytes_s=10_000, window_s=0.3)


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "hf_token"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "large.bin").write_bytes(LARGE)
    (tmp_path / "model" / "small.json").write_bytes(SMALL)
    with HubServer(tmp_path / "model") as server:
        yield server
        assert server.strange == []


def file(server: HubServer, name: str, policy: Policy = QUICK, limits: Limits = SHORT) -> HubFile:
    ref = ModelRef(f"hf://{REPO}", include=(name,))
    (found,) = hub.snapshot(ref, endpoint=server.endpoint, limits=limits).files
    assert isinstance(found, HubFile)
    return replace(found, policy=policy)


def pieces(found: HubFile, size: int = 40_000) -> bytes:
    with found.open() as reading:
        body = b"".join(reading.read_at(at, size) for at in range(0, found.size, size))
        reading.require_unchanged()
    return body


@pytest.mark.parametrize("fault", [*TRANSIENT, "silent", "stall", "trickle"])
@pytest.mark.parametrize(
    ("name", "body", "where"),
    [("large.bin", LARGE, "cdn/"), ("large.bin", LARGE, "hub/"), ("small.json", SMALL, "hub/")],
    ids=["cdn", "mirror", "git"],
)
def test_a_fault_that_passes_costs_time_only(server: HubServer, fault: str, name: str, body: bytes, where: str) -> None:
    found = file(server, name)
    server.cdn = where == "cdn/"
    server.plan = first_times(fault, times=2 if fault in TRANSIENT else 1, only=where + name)
    assert pieces(found) == body
    assert server.failed[fault]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("error", "answered 500"),
        ("busy", "answered 503"),
        ("throttle", "answered 429"),
        ("cut", "large.bin: "),
        ("short", "body ended after 20000 of 40000 bytes"),
        ("long", "body is longer than the 40000 bytes asked for"),
        ("shift", "asked for bytes 0-39999, got 1-40000"),
        ("hangup", "large.bin: "),
        ("silent", "large.bin: "),
        ("stall", "large.bin: "),
        ("trickle", "stalled: "),
        ("expired", "answered 403"),
    ],
)
def test_a_fault_that_stays_is_an_error_in_bounded_time(server: HubServer, fault: str, words: str) -> None:
    found = file(server, "large.bin", Policy(tries=3, base_s=0.01))
    server.plan = first_times(fault, times=99, only="cdn/")
    start = time.monotonic()
    with pytest.raises(RemoteError, match=words) as caught:
        pieces(found)
    assert time.monotonic() - start < BOUND_S
    assert caught.value.where["file"] == "large.bin"
    assert caught.value.where["tries"] == 3
    assert "Signature" not in str(caught.value.to_json())


@pytest.mark.parametrize(("fault", "where", "words"), [
    ("moved", "hub/", "commit f{40}"),
    ("grown", "cdn/", "had 300000 bytes, now 300001"),
])  # fmt: skip
def test_another_file_than_the_one_resolved(server: HubServer, fault: str, where: str, words: str) -> None:
    found = file(server, "large.bin")
    server.plan = first_times(fault, times=99, only=where)
    with pytest.raises(IntegrityError, match=f"changed while it was pushed: .*{words}"):
        pieces(found)


def test_another_etag_in_the_middle(server: HubServer) -> None:
    found = file(server, "large.bin")
    server.plan = lambda key, asked: "edited" if key.startswith("cdn/") and asked >= 2 else ""
    with pytest.raises(IntegrityError, match="changed while it was pushed: its ETag was"):
        pieces(found)


def test_what_git_has_is_compared_with_its_blob_id(server: HubServer) -> None:
    found = file(server, "small.json")
    server.plan = first_times("swap", times=1, only="hub/")
    assert pieces(found) == SMALL
    server.plan = first_times("swap", times=99, only="hub/")
    with pytest.raises(IntegrityError, match=rf"small\.json: git blob \w+, but the hub says {found.blob_id}"):
        pieces(found)


def test_a_small_file_is_asked_for_once(server: HubServer) -> None:
    assert pieces(file(server, "small.json"), 7) == SMALL
    assert server.count("hub") == 1


def test_the_hub_is_asked_once_per_file_and_again_when_the_signature_is_over(server: HubServer) -> None:
    found = file(server, "large.bin")
    with found.open() as reading:
        assert reading.read_at(0, 1000) + reading.read_at(1000, 1000) == LARGE[:2000]
        assert server.count("hub") == 1
        server.expire()
        assert reading.read_at(2000, 1000) == LARGE[2000:3000]
        assert server.count("hub") == 2


def test_the_hub_is_asked_again_where_the_cdn_fails(server: HubServer) -> None:
    found = file(server, "large.bin")
    with found.open() as reading:
        assert reading.read_at(0, 1000) == LARGE[:1000]
        server.plan = lambda key, asked: "hangup" if key.startswith("cdn/") and asked == 1 else ""
        assert reading.read_at(1000, 1000) == LARGE[1000:2000]
    assert (server.count("hub"), server.count("cdn")) == (2, 3)


def test_a_push_from_a_hub_that_falls_silent_ends(server: HubServer, tmp_path: Path) -> None:
    found = file(server, "large.bin", Policy(tries=2, base_s=0.01))
    server.plan = lambda key, asked: "stall" if key.startswith("cdn/") and asked >= 3 else ""
    plan = split.plan(ModelSnapshot("hf://x/y", found.commit, (found,)), chunk_bytes=50_000)
    start = time.monotonic()
    with pytest.raises(RemoteError, match=r"large\.bin"):
        push.push(plan, DirectoryStore(tmp_path / "store"), LocalEngine(2), name="m")
    assert time.monotonic() - start < BOUND_S
    assert not list((tmp_path / "store").glob("refs/*"))


def test_ranges_at_once(server: HubServer) -> None:
    found = file(server, "large.bin")
    server.plan = random_faults(0.2, seed=7, faults=TRANSIENT, only="/large.bin")
    with found.open() as reading, ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda at: reading.read_at(at, 5000), range(0, len(LARGE), 5000)))
    assert b"".join(parts) == LARGE
    assert sum(server.failed.values()) > 3


def test_the_end_of_a_file(server: HubServer) -> None:
    with file(server, "large.bin").open() as reading:
        assert reading.read_at(299_990, 100) == LARGE[-10:]
        assert reading.read_at(300_000, 1) == reading.read_at(400_000, 1) == b""


def test_a_mirror_that_ignores_ranges_is_read_up_to_the_wanted_end(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cdn = False
    server.plan = first_times("whole", times=99, only="hub/")
    found = file(server, "large.bin", Policy(tries=2, base_s=0.01))
    assert pieces(found, 120_000) == LARGE
    monkeypatch.setattr(hub_http, "SKIP_BYTES", 100_000)
    with pytest.raises(RemoteError, match="the server ignores Range") as caught:
        pieces(found)
    assert f"hf download {REPO} large.bin" in caught.value.hint


def test_a_file_too_large_for_the_bridge_is_not_asked_for_again(server: HubServer) -> None:
    found = file(server, "large.bin")
    server.plan = first_times("bridge", times=99, only="cdn/")
    with pytest.raises(RemoteError, match="answered 400") as caught:
        pieces(found)
    assert f"hf download {REPO} large.bin" in caught.value.hint
    assert server.count("cdn") == 1


@pytest.mark.parametrize("fault", ["busy", "throttle"])
@pytest.mark.parametrize("where", ["cdn/", "hub/"])
def test_what_the_server_asks_to_wait_is_passed_on(server: HubServer, fault: str, where: str) -> None:
    """To the retries, whose tests are in tests/unit/transfer."""
    found = file(server, "large.bin")
    server.retry_after_s = 7
    server.plan = first_times(fault, only=where)
    with pytest.raises(RemoteError) as caught:
        Ranges(found).read(0, 10)
    assert caught.value.where["retry_after"] == 7


def test_a_name_that_needs_quoting(server: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "a b#c?d%e é.bin").write_bytes(LARGE)
    server.publish(folder)
    assert pieces(file(server, "*")) == LARGE
