"""A push over a real Ray cluster of several nodes: the same manifest, whatever happens to a node."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder.engines.local import LocalEngine
from builder.engines.ray import RayEngine
from builder.errors import CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.models.resolve import resolve
from builder.models.source import LocalFile, ModelRef, ModelSnapshot
from builder.stores.base import Store
from builder.stores.directory import DirectoryStore
from builder.stores.open import open_store
from builder.weights import push as pushing
from builder.weights import split
from builder.weights.push import PushReport
from builder.weights.verify import verify
from tests.bounds import BOUND_S
from tests.conftest import S3, missing
from tests.gated import GatedFile
from tests.models import safetensors_model

ROOT = Path(__file__).parents[2]
TARGET = 16 << 10
SMALL: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
BUILDER = [sys.executable, "-c", "from builder.cli import main; main()", "weights"]


class Cluster:
    """Nodes on this machine, each with its own raylet, as ray.cluster_utils starts them."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self.ray = RayCluster(initialize_head=True, head_node_args={**SMALL, "num_cpus": 0, "include_dashboard": False})

    @property
    def address(self) -> str:
        return str(self.ray.address)

    def engine(self) -> RayEngine:
        return RayEngine(self.address, threads=2)

    def grow(self, **options: Any) -> Any:
        node = self.ray.add_node(**SMALL, **options)
        assert self.ray.wait_for_nodes(timeout=BOUND_S) is None
        return node

    def kill(self, node: Any) -> None:
        self.ray.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="session")
def ray() -> Any:
    try:
        import ray
    except ImportError as exc:
        missing("ray", f"Ray is not installed: {exc}")
    return ray


@pytest.fixture(autouse=True)
def _own_session(ray: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test connects to is its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for nodes that it starts: they unpickle what lies in tests/
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def cluster(ray: Any) -> Iterator[Cluster]:
    """A head without a CPU, and two nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        made = Cluster()
        made.grow()
        made.grow()
    yield made
    made.ray.shutdown()


@pytest.fixture
def empty(ray: Any) -> Iterator[Cluster]:
    """A head without a CPU: nodes that are added have the environment of this test."""
    made = Cluster()
    yield made
    ray.shutdown()
    made.ray.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two shards, 1.1 MB: about 70 chunks."""
    return safetensors_model(tmp_path / "model", layers=4, hidden=96, shards=2)


def snapshot(source: Path) -> ModelSnapshot:
    return resolve(ModelRef(str(source)))


def push(source: ModelSnapshot, store: Store, engine: Any) -> PushReport:
    return pushing.push(split.plan(source, chunk_bytes=TARGET), store, engine, name="m")


def alone(source: Path, folder: Path) -> PushReport:
    """The same model, pushed by this machine."""
    return push(snapshot(source), DirectoryStore(folder), LocalEngine(4))


def same(one: PushReport, other: PushReport) -> None:
    assert one.manifest.to_bytes() == other.manifest.to_bytes()
    assert (one.chunks, one.bytes) == (other.chunks, other.bytes)


def whole(store: Store) -> None:
    """Every chunk is there and right; no lease is left."""
    assert verify(store, "m", engine=LocalEngine(4)).ok
    assert list(store.keys("leases/")) == []


def test_the_manifest_is_the_same_byte_for_byte(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    first = push(snapshot(model), store, cluster.engine())
    same(first, alone(model, tmp_path / "alone"))
    assert first.sent_chunks == first.chunks
    assert first.sent_bytes == alone(model, tmp_path / "other").sent_bytes
    whole(store)
    again = push(snapshot(model), store, cluster.engine())
    assert (again.digest, again.sent_chunks, again.reused_chunks) == (first.digest, 0, first.chunks)


@pytest.mark.s3
def test_over_s3_with_the_workers_own_credentials(s3: S3, empty: Cluster, model: Path, tmp_path: Path) -> None:
    empty.grow()
    store = open_store(f"{s3.url}/models", endpoint_url=s3.endpoint_url)
    report = push(snapshot(model), store, empty.engine())
    same(report, alone(model, tmp_path / "alone"))
    assert report.sent_chunks == report.chunks
    whole(store)


def test_a_killed_nodes_range_is_done_again(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    doomed = cluster.grow()
    gates = tmp_path / "gates"
    gates.mkdir()
    plain = snapshot(model)
    big = max(plain.files, key=lambda f: f.size)
    assert isinstance(big, LocalFile)
    gate = GatedFile(big, gates)
    gated = replace(plain, files=tuple(gate if f is big else f for f in plain.files))
    store = DirectoryStore(tmp_path / "store")
    stored: list[str] = []

    def murder() -> None:
        try:
            until(lambda: any(node == doomed.node_id for _, node in gate.waiting()))
            stored.extend(key for key, _ in store.keys("chunks/"))
            cluster.kill(doomed)
        finally:
            gate.let_in()

    killer = threading.Thread(target=murder)
    killer.start()
    report = push(gated, store, cluster.engine())
    killer.join()
    dead = doomed.node_id
    assert 0 < len(stored) < report.chunks  # it was midway
    lost = {offset for offset, node in gate.waiting() if node == dead}
    assert lost
    assert lost <= {offset for offset, node in gate.waiting() if node != dead}
    same(report, alone(model, tmp_path / "alone"))
    whole(store)


def test_a_node_without_the_model_is_named(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    found = snapshot(model)
    moved = tmp_path / "moved"
    plan = split.plan(found, chunk_bytes=TARGET)
    shutil.copytree(model, moved)

    class Gone(RayEngine):
        """The weights go once the driver has planned: what a node that lacks them sees."""

        def map(self, do: Any, tasks: Any) -> Any:
            for path in model.glob("*.safetensors"):
                path.unlink()
            return super().map(do, tasks)

    with pytest.raises(ConfigError, match=rf"{socket.gethostname()}: .*safetensors: no such file there") as error:
        pushing.push(plan, DirectoryStore(tmp_path / "store"), Gone(cluster.address, threads=2), name="m")
    assert "shared" in error.value.hint or "every node" in error.value.hint
    assert not list((tmp_path / "store").glob("manifests/**/*"))


def test_a_store_that_fails_is_one_error_and_no_manifest(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "chunks").mkdir(parents=True)
    (store / "chunks" / "sha256").write_text("a file where a folder must be")
    with pytest.raises((RemoteError, CapabilityError), match="chunks/sha256"):
        push(snapshot(model), DirectoryStore(store), cluster.engine())
    assert not (store / "manifests").exists()
    assert not (store / "refs").exists()


def test_a_chunk_of_another_size_is_named(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    chunk = alone(model, store).manifest.file("model-00001-of-00002.safetensors").chunks[2]
    (store / chunk.key).write_bytes(b"short")
    for ref in (store / "refs").iterdir():
        ref.unlink()
    with pytest.raises(IntegrityError) as error:
        push(snapshot(model), DirectoryStore(store), cluster.engine())
    assert chunk.sha256 in error.value.message


def test_a_node_with_another_builder_is_named(
    empty: Cluster, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT / "builder", other / "builder", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "builder" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    empty.grow(env_vars={"PYTHONPATH": str(other)})
    monkeypatch.chdir(tmp_path)  # Ray's workers look for modules in the driver's folder first
    with pytest.raises(ConfigError, match=r"builder is 0\.0\.1 there") as error:
        push(snapshot(model), DirectoryStore(tmp_path / "store"), empty.engine())
    assert error.value.exit_code == 2


def test_the_command(cluster: Cluster, tmp_path: Path) -> None:
    doomed = cluster.grow()
    model, store = tmp_path / "model", tmp_path / "store"
    model.mkdir()
    (model / "weights.bin").write_bytes(random.Random(0).randbytes(64 << 20))
    words = [*BUILDER, "push", "model", "--name", "m", "--store", "store", "--chunk-size", "8MiB", "--concurrency", "1"]
    words += ["--engine", f"ray={cluster.address}", "--format", "json", "-q"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        until(lambda: bool(list(store.glob("chunks/sha256/*/*"))))
        cluster.kill(doomed)
        out, err = running.communicate(timeout=BOUND_S)
    assert running.returncode == 0, err.decode()
    report = json.loads(out)  # Ray's words on the node that it lost are not on stdout
    assert report["sent_chunks"] + report["reused_chunks"] == report["chunks"] == 8
    whole(DirectoryStore(store))


@pytest.mark.parametrize("engine", ["ray=127.0.0.1:9", "ray://127.0.0.1:9"])
def test_a_cluster_that_does_not_answer(engine: str, model: Path, tmp_path: Path) -> None:
    words = [*BUILDER, "push", str(model), "--store", str(tmp_path / "store"), "--engine", engine]
    done = subprocess.run([*words, "--format", "json", "-q"], capture_output=True, timeout=BOUND_S, check=False)
    assert done.returncode == 5, done.stderr.decode()
    assert json.loads(done.stdout)["error"]["code"] == "remote"
    assert not (tmp_path / "store" / "manifests").exists()


def until(true: Callable[[], bool], seconds: float = BOUND_S) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
