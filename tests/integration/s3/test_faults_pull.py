"""Pull through a proxy that fails, from a real S3 server: the model's bytes, or no folder and the right exit code."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from builder.engines.local import LocalEngine
from builder.errors import BuilderError, IntegrityError
from builder.format.volume import partial_dir
from builder.stores.directory import DirectoryStore
from builder.stores.s3 import S3Store
from builder.transfer.checksum import Digests
from builder.transfer.manifests import read_manifest
from builder.transfer.restore import RestoreReport, restore
from builder.transfer.retry import Policy, retrying
from builder.transfer.source import Limits, open_source
from builder.weights.push import PushReport
from builder.weights.verify import verify
from tests.bounds import BOUND_S
from tests.conftest import S3
from tests.integration.s3.faulty import Helper, at, cli, finish, good, lay, push_small, same, start
from tests.models import safetensors_model
from tests.servers.proxy import THROTTLES, FaultProxy, first_times, random_faults

pytestmark = pytest.mark.s3
LIMITS = Limits(connect_s=2.0, silence_s=0.5, floor_bytes_s=1000, window_s=0.2)
TRANSIENT = (*THROTTLES, "hangup", "cut", "silent", "stall", "short", "surplus", "flip", "swap")
INSTANT = tuple(f for f in TRANSIENT if f not in ("silent", "stall"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.6 MB, about 100 chunks of 16 KiB."""
    return safetensors_model(tmp_path_factory.mktemp("m") / "model", layers=3, hidden=128, vocab=600, shards=2)


@dataclass(frozen=True)
class Pushed:
    """A model in the real store. report: of its push."""

    s3: S3
    report: PushReport
    model: Path


@pytest.fixture(scope="module")
def stored(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PushReport]:
    folder = tmp_path_factory.mktemp("store")
    return folder, push_small(model, DirectoryStore(folder))


@pytest.fixture
def pushed(s3: S3, model: Path, stored: tuple[Path, PushReport]) -> Pushed:
    lay(s3, stored[0])
    return Pushed(s3, stored[1], model)


def fetch(pushed: Pushed, proxy: FaultProxy, folder: Path, tries: int = 8) -> RestoreReport:
    plain = open_source(pushed.s3.url, endpoint_url=proxy.endpoint_url, region="us-east-1", limits=LIMITS)
    source = retrying(plain, Policy(tries=tries, base_s=0.001, cap_s=0.01))
    return restore(read_manifest(source, "m"), source, folder)


@pytest.fixture
def bounded() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < BOUND_S


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("fault", TRANSIENT)
def test_pull_finishes_with_each_fault_on_a_twentieth_of_the_requests(pushed: Pushed, tmp_path: Path, fault: str) -> None:
    plan = random_faults(0.05, seed=1, faults=(fault,))
    with FaultProxy(pushed.s3.endpoint_url, plan=plan) as proxy:
        report = fetch(pushed, proxy, tmp_path / "out")
    assert proxy.failed[fault] >= 2, "the fault happened"
    assert same(pushed.model, tmp_path / "out")
    assert report.fetched_chunks <= pushed.report.chunks


def test_the_command_finishes_with_all_kinds_mixed_on_a_tenth_of_the_requests(pushed: Pushed, tmp_path: Path) -> None:
    plan = random_faults(0.1, seed=2, faults=INSTANT)
    with FaultProxy(pushed.s3.endpoint_url, plan=plan) as proxy:
        good("pull", "m", "--to", tmp_path / "out", *at(pushed.s3, proxy))
    assert len(proxy.failed) >= 5
    assert same(pushed.model, tmp_path / "out")


@pytest.mark.parametrize(
    ("fault", "code", "hint"),
    [
        ("expired", 5, "renew the credentials"),
        ("skewed", 5, "clock"),
        ("error", 5, "run again"),
        ("busy", 5, "lower the concurrency"),
        ("hangup", 5, "can be reached"),
        ("cut", 5, "check the line"),
        ("silent", 5, "can be reached"),
        ("stall", 5, ""),
        ("flip", 3, "repair"),
        ("long", 3, ""),
    ],
)
def test_a_fault_that_stays_ends_the_pull_with_its_code_and_a_rerun_completes(
    pushed: Pushed, tmp_path: Path, fault: str, code: int, hint: str
) -> None:
    out, begin = tmp_path / "out", time.monotonic()
    with FaultProxy(pushed.s3.endpoint_url) as proxy:
        proxy.plan = lambda asked: fault if "/chunks/" in asked.key and asked.total > 40 else ""
        with pytest.raises(BuilderError) as caught:
            fetch(pushed, proxy, out, tries=2)
        assert time.monotonic() - begin < BOUND_S
        assert caught.value.exit_code == code
        assert hint in caught.value.hint
        assert caught.value.where["faults"], "every chunk that failed is named"
        assert not out.exists()
        proxy.plan = lambda asked: ""
        assert fetch(pushed, proxy, out).reused_bytes > 0
    assert same(pushed.model, out)


@pytest.mark.parametrize(("fault", "code"), [("refuse", 5), ("skewed", 5), ("long", 3)])
def test_the_command_exits_with_the_code_of_the_fault(pushed: Pushed, tmp_path: Path, fault: str, code: int) -> None:
    with FaultProxy(pushed.s3.endpoint_url, plan=lambda asked: fault if "/chunks/" in asked.key else "") as proxy:
        ended = cli("pull", "m", "--to", tmp_path / "out", *at(pushed.s3, proxy))
    assert (ended.code, ended.error["exit"]) == (code, code)
    assert not (tmp_path / "out").exists()


def test_one_chunk_that_is_always_wrong_is_named_and_the_others_are_kept(pushed: Pushed, tmp_path: Path) -> None:
    victim = pushed.report.manifest.file("model-00001-of-00002.safetensors").chunks[3]
    with FaultProxy(pushed.s3.endpoint_url, plan=first_times("flip", 99, only=victim.sha256)) as proxy:
        ended = cli("pull", "m", "--to", tmp_path / "out", *at(pushed.s3, proxy))
        assert ended.code == 3
        (fault,) = ended.error["where"]["faults"]
        assert (fault["object"], fault["start"]) == (victim.key, victim.offset)
        assert not (tmp_path / "out").exists()
        proxy.plan = lambda asked: ""
        assert good("pull", "m", "--to", tmp_path / "out", *at(pushed.s3, proxy))["fetched_chunks"] == 1
    assert same(pushed.model, tmp_path / "out")


@pytest.mark.parametrize("kind", ["refs", "manifests"])
@pytest.mark.parametrize("fault", ["busy", "hangup", "cut", "short", "flip"])
def test_the_way_to_the_manifest_fails_too(pushed: Pushed, tmp_path: Path, kind: str, fault: str) -> None:
    """A ref carries no checksum of its own: a damaged one may be refused at once, but never leads to another model."""
    with FaultProxy(pushed.s3.endpoint_url, plan=first_times(fault, only=f"/{kind}/")) as proxy:
        try:
            report = fetch(pushed, proxy, tmp_path / "out")
        except IntegrityError:
            assert kind == "refs"
            assert fault in ("short", "flip")
            assert not (tmp_path / "out").exists()
            report = fetch(pushed, proxy, tmp_path / "out")
        assert proxy.failed[fault] == 1
    assert report.digest == pushed.report.digest
    assert same(pushed.model, tmp_path / "out")


@pytest.mark.parametrize("fault", ["strip", "sum"])
def test_checksum_headers_that_lack_or_mislead_do_no_harm(s3: S3, model: Path, tmp_path: Path, fault: str) -> None:
    """The store's own checksums are a help to the wire, never the proof: the manifest's are."""
    with FaultProxy(s3.endpoint_url, plan=lambda asked: fault if asked.method == "GET" else "", digests=True) as proxy:
        push_small(model, S3Store(s3.url, endpoint_url=proxy.endpoint_url))
        good("pull", "m", "--to", tmp_path / "out", *at(s3, proxy))
    assert proxy.failed[fault] > 0
    assert same(model, tmp_path / "out")


def test_a_store_whose_clock_is_hours_off_is_read_all_the_same(pushed: Pushed, tmp_path: Path) -> None:
    with FaultProxy(pushed.s3.endpoint_url, clock_off=timedelta(hours=30)) as proxy:
        fetch(pushed, proxy, tmp_path / "out")
    assert same(pushed.model, tmp_path / "out")


def test_credentials_that_expire_midway_are_renewed(pushed: Pushed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own helper (credential_process) has new ones by then; the same command goes on with them."""
    helper = Helper(pushed.s3, tmp_path, monkeypatch)
    with FaultProxy(pushed.s3.endpoint_url, plan=helper.plan(after=30)) as proxy:
        good("pull", "m", "--to", tmp_path / "out", *at(pushed.s3, proxy))
        assert proxy.failed["expired"] > 0
        assert proxy.asked[-1].token == helper.token(1)
    assert same(pushed.model, tmp_path / "out")


def test_ten_pulls_of_one_folder_fetch_each_chunk_once(pushed: Pushed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with FaultProxy(pushed.s3.endpoint_url, delay_s=0.005) as proxy:
        ends = [finish(p) for p in [start("pull", "m", "--to", out, *at(pushed.s3, proxy)) for _ in range(10)]]
        assert [e.code for e in ends] == [0] * 10
        assert proxy.count("GET", "/chunks/") == sum(e.data["fetched_chunks"] for e in ends)
    fetched = sorted(e.data["fetched_chunks"] for e in ends)
    assert fetched[:9] == [0] * 9
    assert 0 < fetched[9] <= pushed.report.chunks
    assert same(pushed.model, out)
    assert not partial_dir(out).exists()


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("fault", ["busy", "hangup", "cut", "short", "flip", "surplus"])
def test_verify_does_not_take_a_bad_wire_for_a_bad_store(pushed: Pushed, fault: str) -> None:
    """What was wrong is looked at a second time, so a twentieth of the first looks fail here, and no second one."""
    plan = random_faults(0.05, seed=4, faults=(fault,))
    with FaultProxy(pushed.s3.endpoint_url, plan=lambda asked: plan(asked) if asked.nth == 0 else "") as proxy:
        found = verify(S3Store(pushed.s3.url, endpoint_url=proxy.endpoint_url), "m", engine=LocalEngine(4))
    assert proxy.failed[fault] >= 2
    assert found.faults == ()


@pytest.mark.parametrize("fault", ["", "error", "hangup", "cut", "short", "surplus", "flip", "swap"])
def test_an_object_larger_than_its_window(s3: S3, fault: str) -> None:
    """Pieces are written before the object is checked: with every try from its start again, and never beyond its end."""
    body, room = random.Random(6).randbytes(5 << 20 | 77), 1 << 20
    (s3.folder / s3.bucket / "big").write_bytes(body)
    window, found, tries = memoryview(bytearray(room)), bytearray(len(body)), []

    def write(piece: memoryview, offset: int) -> None:
        assert piece.obj is window.obj
        if not offset:
            tries.append(0)
        assert offset == tries[-1]
        tries[-1] += len(piece)
        assert tries[-1] <= len(body)
        found[offset : offset + len(piece)] = piece

    def check(digests: Digests) -> None:
        if digests.sha256 != hashlib.sha256(body).hexdigest():
            raise IntegrityError("other bytes")

    with FaultProxy(s3.endpoint_url, digests=True, plan=first_times(fault)) as proxy:
        plain = open_source(s3.url, endpoint_url=proxy.endpoint_url, region="us-east-1", limits=LIMITS)
        source = retrying(plain, Policy(base_s=0.001, cap_s=0.01))
        assert source.stream("big", window, limit=len(body), check=check, write=write) == len(body)
        assert not fault or proxy.failed[fault] > 0
    assert found == body
    assert tries[-1] == len(body)
