"""A store over its life, on a folder and on two S3 servers: one tells checksums of its objects (rclone), one none (moto)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder.errors import IntegrityError
from builder.stores.base import Reader, Store
from builder.stores.open import open_store
from builder.transfer.manifests import read_manifest
from builder.weights import refs
from builder.weights.copy import copy
from builder.weights.gc import gc
from builder.weights.lease import Timing, hold
from builder.weights.listing import ls
from builder.weights.plain import verify_plain
from builder.weights.verify import verify
from tests.bounds import BOUND_S
from tests.conftest import S3, missing
from tests.models import safetensors_model
from tests.unit.weights.build import ENGINE, push

BUILDER = [sys.executable, "-c", "from builder.cli import main; main()", "weights"]
MEMORY = 256 << 20


@dataclass(frozen=True)
class Place:
    """A store, and the options that name it. tells: whether it tells digests of its objects."""

    url: str
    endpoint_url: str | None
    tells: bool

    @property
    def store(self) -> Store:
        return open_store(self.url, endpoint_url=self.endpoint_url)

    @property
    def options(self) -> list[str]:
        return ["--store", self.url, *(["--endpoint-url", self.endpoint_url] if self.endpoint_url else [])]


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    try:
        from moto.server import ThreadedMotoServer
    except ImportError as exc:
        missing("s3", str(exc))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", pytest.param("rclone", marks=pytest.mark.s3), pytest.param("moto", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make(request, request.param, tmp_path / "store")


def make(request: pytest.FixtureRequest, kind: str, folder: Path) -> Place:
    if kind == "folder":
        return Place(str(folder), None, False)
    s3: S3 = request.getfixturevalue("s3")  # its keys are in the environment; moto takes any
    if kind == "rclone":
        return Place(f"{s3.url}/models", s3.endpoint_url, True)
    import boto3

    endpoint: str = request.getfixturevalue("moto_url")
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=s3.bucket)
    return Place(f"s3://{s3.bucket}/models", endpoint, False)


def version(tmp_path: Path, seed: int) -> Path:
    return safetensors_model(tmp_path / f"v{seed}", layers=1, hidden=32, vocab=64, seed=seed, shards=2)


def keys(store: Store, prefix: str = "") -> set[str]:
    return {key for key, _ in store.keys(prefix)}


def run(*args: object, code: int = 0) -> dict[str, Any]:
    words = [*BUILDER, *map(str, args), "--format", "json", "-q"]
    done = subprocess.run(words, capture_output=True, timeout=BOUND_S, check=False)
    assert done.returncode == code, done.stdout.decode() + done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def complete(store: Store) -> dict[str, str]:
    """Every ref leads to a model whose chunks are all there and right."""
    found = {}
    for ref in refs.refs(store):
        report = verify(store, ref.ref, engine=ENGINE)
        assert report.ok, report.faults
        found[ref.ref] = ref.digest
    return found


def test_entries_tell_the_time_of_the_last_write(place: Place) -> None:
    """By the server's clock; both run on this machine. S3 tells whole seconds."""
    store = place.store
    before = int(time.time())
    store.put("refs/a", b"1", sha256="6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b", crc64nvme="")
    (entry,) = store.entries("refs/")
    assert (entry.key, entry.size) == ("refs/a", 1)
    assert before - 1 <= entry.modified <= time.time() + 1
    assert list(store.keys("refs/")) == [("refs/a", 1)]


def test_leases_exclude_each_other(place: Place) -> None:
    store = place.store
    fast = Timing(poll_s=0.05)
    inside: list[str] = []
    wrong: list[list[str]] = []
    lock = threading.Lock()

    def one(role: str) -> None:
        for _ in range(2):
            with hold(store, role, timing=fast, wait_s=BOUND_S) as held:
                with lock:
                    inside.append(role)
                    if "gc" in inside and len(inside) > 1:
                        wrong.append(list(inside))
                held.require()
                time.sleep(0.02)
                with lock:
                    inside.remove(role)

    threads = [threading.Thread(target=one, args=(role,)) for role in ("push", "push", "gc", "gc")]
    for t in threads:
        t.start()
    for t in threads:
        t.join(BOUND_S)
        assert not t.is_alive()
    assert not wrong
    assert keys(store, "leases/") == set()


def test_push_tag_gc_copy(place: Place, tmp_path: Path) -> None:
    store = place.store
    for seed in range(3):
        push(version(tmp_path, seed), store, chunk_bytes=8192)
        if seed == 0:
            refs.tag(store, "m", "v0")
    named = complete(store)
    entries = {e.ref: e for e in ls(store)}
    assert entries.keys() == {"m", "m@v0"}
    assert all(abs(e.pushed - time.time()) < 120 for e in entries.values())
    everything = keys(store)
    would = gc(store, engine=ENGINE, grace_s=0, keep_last=0)
    assert keys(store) == everything
    time.sleep(1.1)  # S3 tells whole seconds: what this second wrote is no older than the lease
    did = gc(store, engine=ENGINE, grace_s=0, keep_last=0, dry_run=False, wait_s=0)
    assert len(did.manifests) == 1
    assert would.chunks <= did.chunks
    assert len(everything) - len(keys(store)) == did.chunks + 1
    assert complete(store) == named
    assert gc(store, engine=ENGINE, dry_run=False, wait_s=0).chunks == 0


def test_the_grace_keeps_what_is_young(place: Place, tmp_path: Path) -> None:
    store = place.store
    for seed in range(2):
        push(version(tmp_path, seed), store, chunk_bytes=8192)
    before = keys(store)
    report = gc(store, engine=ENGINE, keep_last=0, dry_run=False, wait_s=0)
    assert (report.manifests, report.chunks, report.young_manifests) == ((), 0, 1)
    assert keys(store) == before


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("folder", "folder"),
        pytest.param("folder", "rclone", marks=pytest.mark.s3),
        pytest.param("rclone", "moto", marks=pytest.mark.s3),
        pytest.param("moto", "folder", marks=pytest.mark.s3),
    ],
)
def test_copies_between_stores(request: pytest.FixtureRequest, tmp_path: Path, first: str, second: str) -> None:
    a, b = make(request, first, tmp_path / "a").store, make(request, second, tmp_path / "b").store
    digest = push(version(tmp_path, 1), a, chunk_bytes=8192).digest
    report = copy(a, "m", b, engine=ENGINE, memory=MEMORY)
    assert report.sent_chunks == report.chunks
    assert complete(b) == {"m": digest}
    assert copy(a, "m", b, engine=ENGINE, memory=MEMORY).sent_chunks == 0
    _, chunk = next((f, c) for f, c in read_manifest(Reader(a), "m").chunks() if c.size > 1000)
    bad = os.urandom(chunk.size)
    for store in (a, b):
        store.delete(chunk.key)
    a.replace(chunk.key, bad, sha256=hashlib.sha256(bad).hexdigest(), crc64nvme="")
    with pytest.raises(IntegrityError, match=r"1 of \d+ chunks could not be copied"):
        copy(a, "m", b, engine=ENGINE, memory=MEMORY)
    assert b.size(chunk.key) is None


def test_verify_remote_says_what_it_proved(place: Place, tmp_path: Path) -> None:
    push(version(tmp_path, 1), place.store, chunk_bytes=8192)
    found = run("verify", "m", "--remote", *place.options)
    assert found["endpoint"] == (place.endpoint_url or "")
    assert (found["by_digest"], found["by_size"]) == ((found["chunks"], 0) if place.tells else (0, found["chunks"]))
    done = subprocess.run([*BUILDER, "verify", "m", "--remote", *place.options], capture_output=True, check=True, text=True)
    assert ("run without --remote" in done.stdout) == (not place.tells)
    assert ((place.endpoint_url or place.url) in done.stdout) == (not place.tells)


@pytest.mark.s3
def test_a_store_that_tells_digests_is_audited_by_head(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Other bytes of the same size: seen without reading, where the store tells its checksum."""
    place = make(request, "rclone", tmp_path)
    store = place.store
    push(version(tmp_path, 1), store, chunk_bytes=8192)
    _, chunk = next((f, c) for f, c in read_manifest(Reader(store), "m").chunks() if c.size > 1000)
    bad = os.urandom(chunk.size)
    store.replace(chunk.key, bad, sha256=hashlib.sha256(bad).hexdigest(), crc64nvme="")
    error = run("verify", "m", "--remote", *place.options, code=3)["error"]
    assert [f["object"] for f in error["where"]["faults"]] == [chunk.key]


def test_plain_files_are_what_a_stock_reader_finds(place: Place, tmp_path: Path) -> None:
    """By listing the prefix and reading each object, as KServe's initializer, run:ai's streamer and vLLM do."""
    model = version(tmp_path, 1)
    store = place.store
    push(model, store, chunk_bytes=8192, plain=True)
    want = {p.name: p.read_bytes() for p in model.iterdir()}
    if place.endpoint_url:
        import boto3

        bucket, _, prefix = place.url.removeprefix("s3://").partition("/")
        client = boto3.client("s3", endpoint_url=place.endpoint_url, region_name="us-east-1")
        prefix += "/plain/m/"
        listed = [o["Key"] for o in client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]]
        got = {k.removeprefix(prefix): client.get_object(Bucket=bucket, Key=k)["Body"].read() for k in listed}
    else:
        got = {p.name: p.read_bytes() for p in (Path(place.url) / "plain/m").iterdir()}
    assert got == want
    report = verify_plain(store, "m", engine=ENGINE)
    assert report.ok
    assert report.by_digest + report.by_read == report.files


KILLED_GC = """
import os, signal, sys, threading
from builder.engines.local import LocalEngine
from builder.stores.open import open_store
from builder.weights.gc import gc
store, left, real = open_store(sys.argv[1], endpoint_url=sys.argv[2] or None), [int(sys.argv[3])], None
real = store.delete
def delete(key):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(key)
store.delete = delete
gc(store, engine=LocalEngine(2), grace_s=0, keep_last=0, dry_run=False, wait_s=0)
"""


def test_a_gc_killed_midway_then_a_push_then_a_gc(place: Place, tmp_path: Path) -> None:
    """A real kill -9: its lease stays, and a push of this machine sees at once that its holder is gone."""
    store = place.store
    for seed in range(2):
        push(version(tmp_path, seed), store, chunk_bytes=8192)
    time.sleep(1.1)
    words = [sys.executable, "-c", KILLED_GC, place.url, place.endpoint_url or "", "3"]
    done = subprocess.run(words, capture_output=True, timeout=BOUND_S, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(keys(store, "leases/gc/")) == 1
    complete(store)
    start = time.monotonic()
    push(version(tmp_path, 0), store, chunk_bytes=8192)  # what is half deleted comes back
    assert time.monotonic() - start < BOUND_S  # it does not wait until the lease has run out
    found = complete(store)
    time.sleep(1.1)
    gc(store, engine=ENGINE, grace_s=0, keep_last=0, dry_run=False, wait_s=0)
    assert complete(store) == found
    assert keys(store, "leases/") == set()


def test_pushes_and_gcs_at_once(place: Place, tmp_path: Path) -> None:
    """Two processes push versions back and forth, one collects all that is unnamed, with no grace at all."""
    for seed in range(3):
        version(tmp_path, seed)
    code = (
        "import sys; from pathlib import Path; from tests.unit.weights.build import push;"
        "from builder.stores.open import open_store; s = open_store(sys.argv[1], endpoint_url=sys.argv[2] or None);"
        "[push(Path(p), s, name=sys.argv[3], chunk_bytes=8192) for p in sys.argv[4:]]"
    )
    draw = random.Random(5)
    arguments = [place.url, place.endpoint_url or ""]
    pushers = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments, name, *(str(tmp_path / f"v{draw.randrange(3)}") for _ in range(4))],
            cwd=Path(__file__).parents[3],
            stderr=subprocess.PIPE,
        )
        for name in ("m", "n")
    ]
    try:
        store = place.store
        push(tmp_path / "v0", store, name="o", chunk_bytes=8192)
        while any(p.poll() is None for p in pushers):
            gc(store, engine=ENGINE, grace_s=0, keep_last=0, dry_run=False, wait_s=BOUND_S)
            complete(store)
            time.sleep(0.2)
    finally:
        said = [p.communicate(timeout=BOUND_S)[1].decode() for p in pushers]
    assert [p.returncode for p in pushers] == [0, 0], said
    assert complete(store).keys() == {"m", "n", "o"}
    assert keys(store, "leases/") == set()


@pytest.mark.parametrize("place", ["folder", pytest.param("rclone", marks=pytest.mark.s3)], indirect=True)
def test_the_commands(place: Place, tmp_path: Path) -> None:
    """Each command's JSON and exit code, as a script sees them."""
    a, b = version(tmp_path, 1), version(tmp_path, 2)
    first = run("push", a, "--name", "m", *place.options)
    assert run("tag", "m", "v1", "--dry-run", *place.options)["changed"]
    assert run("tag", "m", "v1", *place.options)["digest"] == first["digest"]
    would = run("diff", "m", "--from", b, *place.options)
    second = run("push", b, "--name", "m", *place.options)
    assert (would["send_bytes"], would["after"]) == (second["sent_bytes"], second["digest"])
    found = run("diff", "m@v1", "m", *place.options)
    assert (found["before"], found["after"], found["same"]) == (first["digest"], second["digest"], False)
    assert run("tag", "m", "v1", *place.options, code=2)["error"]["hint"]
    assert {m["ref"] for m in run("ls", *place.options)["models"]} == {"m", "m@v1"}
    assert run("ls", "m", *place.options)["digest"] == second["digest"]
    other = tmp_path / "other"
    assert run("copy", "m@v1", "--to-store", other, "--dry-run", *place.options)["dry_run"]
    assert run("copy", "m@v1", "--to-store", other, *place.options)["refs"] == ["m@v1"]
    assert run("diff", "m@v1", "m@v1", "--other-store", other, *place.options)["same"]
    assert run("tag", "--delete", "m@v1", *place.options)["before"] == first["digest"]
    time.sleep(1.1)
    shown = run("gc", "--grace", "0s", "--keep-last", "0", *place.options)
    assert shown["dry_run"]
    gone = run("gc", "--grace", "0s", "--keep-last", "0", "--yes", *place.options)
    assert [m["digest"] for m in gone["manifests"]] == [first["digest"]]
    run("pull", "m", "--to", tmp_path / "out", *place.options)
    with hold(place.store, "push"):
        error = run("gc", "--yes", "--wait", "0s", *place.options, code=5)["error"]
    assert f"process {os.getpid()}" in error["message"]
    assert run("gc", "--yes", "--dry-run", *place.options, code=2)["error"]["code"] == "config"


def test_writes_to_what_may_only_be_read(tmp_path: Path) -> None:
    error = run("copy", "m", "--store", tmp_path, "--to-store", "https://example.com/models", code=2)["error"]
    assert "cannot be written" in error["message"]
    assert run("gc", "--store", "https://example.com/models", code=2)["error"]["hint"]
    assert not list(tmp_path.iterdir())
