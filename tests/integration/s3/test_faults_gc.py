"""gc on a real S3 server behind a proxy that fails, kills, and lies about the time: nothing that a model needs is deleted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from builder.engines.local import LocalEngine
from builder.format.manifest import parse
from builder.stores.directory import DirectoryStore
from builder.stores.s3 import S3Store
from builder.weights.lease import hold
from builder.weights.verify import verify
from tests.conftest import S3
from tests.integration.s3.faulty import at, cli, finish, good, lay, objects, push_small, same, start, visible, wrong_chunks
from tests.integration.s3.test_faults_crash import Killer
from tests.models import safetensors_model
from tests.servers.proxy import FaultProxy, first_times, random_faults

pytestmark = pytest.mark.s3
NOW = ("gc", "--yes", "--grace", "0s", "--keep-last", "1")


@dataclass(frozen=True)
class Versions:
    """One name pushed three times; the last one is what the ref leads to. folders: the models, oldest first."""

    s3: S3
    folders: tuple[Path, ...]

    def store(self) -> S3Store:
        return S3Store(self.s3.url, endpoint_url=self.s3.endpoint_url)

    def loose(self) -> set[str]:
        """Names of the chunks that no manifest in the store names."""
        bodies = [p.read_bytes() for p in objects(self.s3, "manifests")]
        needed = {sha256 for body in bodies for sha256 in parse(body, at="", digest="").order}
        return {p.name for p in objects(self.s3, "chunks")} - needed

    def broken(self) -> list[str]:
        """Manifests of which a chunk is missing."""
        there = {p.name for p in objects(self.s3, "chunks")}
        found = [parse(p.read_bytes(), at=p.name, digest="") for p in objects(self.s3, "manifests")]
        return [m.digest for m in found if not there.issuperset(m.order)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return tuple(safetensors_model(tmp_path_factory.mktemp("v") / "model", layers=2, seed=n) for n in range(3))


@pytest.fixture(scope="module")
def stored(folders: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    for folder in folders:
        push_small(folder, DirectoryStore(store))
    return store


@pytest.fixture
def versions(s3: S3, folders: tuple[Path, ...], stored: Path) -> Iterator[Versions]:
    lay(s3, stored)
    found = Versions(s3, folders)
    yield found
    assert wrong_chunks(s3) == []
    assert found.broken() == []
    assert verify(found.store(), "m", engine=LocalEngine(4)).ok


def test_killed_at_any_request_it_leaves_whole_models_and_the_next_one_finishes(versions: Versions) -> None:
    draw, killed = random.Random(21), 0
    with FaultProxy(versions.s3.endpoint_url) as proxy:
        killer = Killer(proxy)
        for nth in [9, 14, *(draw.randrange(10, 45) for _ in range(3))]:
            killed += killer.run(*NOW, *at(versions.s3, proxy), nth=nth, drop=draw.random() < 0.5)
            assert versions.broken() == []
        assert killed >= 3
        killer.left = -1
        good(*NOW, *at(versions.s3, proxy))
    assert versions.loose() == set()
    assert len(objects(versions.s3, "manifests")) == 1
    assert objects(versions.s3, "leases") == []


def test_it_finishes_with_faults_on_a_tenth_of_the_requests(versions: Versions) -> None:
    plan = random_faults(0.1, seed=22, faults=("error", "unavailable", "hangup", "hangup-after", "error-after"))
    with FaultProxy(versions.s3.endpoint_url, plan=plan) as proxy:
        report = good(*NOW, *at(versions.s3, proxy))
    assert proxy.failed.total() >= 5
    assert len(report["manifests"]) == 2
    assert versions.loose() == set()


@pytest.mark.parametrize(
    ("fault", "methods", "only"),
    [("refuse", "DELETE", "/chunks/"), ("refuse", "DELETE", "/manifests/"), ("skewed", "LIST", ""), ("short", "GET", "/refs/")],
)
def test_a_fault_that_stays_ends_it_and_a_rerun_finishes(versions: Versions, fault: str, methods: str, only: str) -> None:
    with FaultProxy(versions.s3.endpoint_url, plan=first_times(fault, 99, methods=methods, only=only)) as proxy:
        ended = cli(*NOW, *at(versions.s3, proxy))
        assert ended.code == (3 if fault == "short" else 5)
        assert versions.broken() == []
        proxy.plan = lambda asked: ""
        good(*NOW, *at(versions.s3, proxy))
    assert versions.loose() == set()


@pytest.mark.parametrize("fault", ["flip", "short", "cut"])
def test_a_manifest_damaged_on_the_way_costs_no_chunk(versions: Versions, fault: str) -> None:
    plan = first_times(fault, 2, methods="GET", only="/manifests/")
    with FaultProxy(versions.s3.endpoint_url, plan=plan) as proxy:
        cli("gc", "--yes", "--grace", "0s", "--keep-last", "9", *at(versions.s3, proxy))
    assert proxy.failed[fault] > 0
    assert len(objects(versions.s3, "manifests")) == 3


@pytest.mark.parametrize("hours", [-30, 30])
def test_ages_are_by_the_stores_clock(versions: Versions, hours: int) -> None:
    """A machine whose clock is a day off must neither delete what is young, nor take a live lease for a dead one."""
    s3 = versions.s3
    with FaultProxy(s3.endpoint_url, clock_off=timedelta(hours=hours)) as proxy:
        report = good("gc", "--yes", "--keep-last", "0", *at(s3, proxy))
        assert (report["manifests"], report["chunks"]) == ([], 0)
        with hold(S3Store(s3.url, endpoint_url=proxy.endpoint_url), "push"):
            busy = cli(*NOW, "--wait", "1s", *at(s3, proxy))
        assert busy.code == 5
        assert "push by process" in busy.error["message"]
        assert len(objects(s3, "manifests")) == 3
        good(*NOW, *at(s3, proxy))
    assert versions.loose() == set()


def test_two_pushes_and_a_gc_at_once(s3: S3, tmp_path: Path) -> None:
    """The pushes rely on chunks that nothing leads to until they end: exactly what the gc is there to delete."""
    models = {name: safetensors_model(tmp_path / name, layers=1, hidden=512, vocab=4000, seed=n) for n, name in enumerate("ab")}
    for name, model in models.items():
        good("push", model, "--name", name, *at(s3))
    for path in (*objects(s3, "refs"), *objects(s3, "manifests")):
        path.unlink()
    assert visible(s3) == []
    draw = random.Random(23)
    for n in range(2):
        plan = random_faults(0.05, seed=n, faults=("error", "hangup", "hangup-after"))
        with FaultProxy(s3.endpoint_url, plan=plan, delay_s=0.02) as proxy:
            runs: list[tuple[str | Path, ...]] = [("push", model, "--name", name) for name, model in models.items()]
            runs += [("gc", "--yes", "--grace", "0s", "--keep-last", "0")]
            draw.shuffle(runs)
            ends = [finish(p) for p in [start(*args, *at(s3, proxy)) for args in runs]]
        assert [e.code for e in ends] == [0, 0, 0], [e.data for e in ends]
        for name, model in models.items():
            good("pull", name, "--to", tmp_path / f"{name}-{n}", *at(s3))
            assert same(model, tmp_path / f"{name}-{n}")
        assert wrong_chunks(s3) == []
        for path in (*objects(s3, "refs"), *objects(s3, "manifests")):
            path.unlink()
