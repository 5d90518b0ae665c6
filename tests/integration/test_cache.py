"""The node cache between processes: one download, nothing in use removed, nothing half visible, whoever is killed when."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.format.volume import model_dir, use_file
from builder.transfer.cache import SPARE_BYTES, Budget, ensure, prune, scan
from builder.transfer.check import check_folder
from builder.transfer.lease import holders
from builder.transfer.restore import restore
from tests.bounds import BOUND_S
from tests.integration.test_runtime import Served
from tests.servers.objects import ObjectServer
from tests.unit.transfer.build import DictSource, Model, model, random_model

MIB = 1 << 20
PULL = """
import json, sys
from pathlib import Path
from builder.transfer.cache import Budget, ensure
from builder.transfer.manifests import read_manifest
from builder.transfer.restore import restore
from builder.transfer.source import open_source
url, name, root, limit = sys.argv[1:]
source = open_source(url)
manifest = read_manifest(source, name)
fetch = lambda folder: restore(manifest, source, folder, concurrency=4)
with ensure(manifest, Path(root), fetch, budget=Budget.parse(limit) if limit else None) as held:
    print(json.dumps(held.report.to_json()), flush=True)
    sys.stdin.read()
"""
# Takes random models, reads them whole while it holds them, and compares every file's digest with the manifest's.
READ = """
import hashlib, json, random, sys, time
from pathlib import Path
from builder.errors import CapabilityError
from builder.transfer.cache import Budget, ensure
from builder.transfer.manifests import read_manifest
from builder.transfer.restore import restore
from builder.transfer.source import open_source
url, names, root, limit, seed, seconds = sys.argv[1:]
source, draw, end = open_source(url), random.Random(int(seed)), time.monotonic() + float(seconds)
manifests = [read_manifest(source, name) for name in names.split()]
done = {"read": 0, "fetched": 0, "refused": 0}
while time.monotonic() < end:
    manifest = draw.choice(manifests)
    fetch = lambda folder: restore(manifest, source, folder, concurrency=2)
    try:
        held = ensure(manifest, Path(root), fetch, budget=Budget.parse(limit))
    except CapabilityError as exc:
        assert "bytes needed in a cache of" in exc.message, exc.message
        done["refused"] += 1
        continue
    with held:
        done["fetched"] += held.report.fetched_bytes > 0
        for file in manifest.files:
            time.sleep(draw.random() * 0.003)
            found = hashlib.sha256((held.folder / file.path).read_bytes()).hexdigest()
            assert found == file.sha256, (held.folder, file.path)
            done["read"] += 1
print(json.dumps(done))
"""
EVICT = """
import sys
from pathlib import Path
from builder.transfer.cache import prune
while True:
    prune(Path(sys.argv[1]), int(sys.argv[2]))
"""


def start(program: str, *words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def pull(server: ObjectServer, root: Path, name: str = "m", limit: str = "") -> subprocess.Popen[bytes]:
    return start(PULL, f"{server.endpoint_url}/store", name, root, limit)


def finish(process: subprocess.Popen[bytes]) -> dict[str, int]:
    out, err = process.communicate(timeout=BOUND_S)
    assert process.returncode == 0, err.decode()
    found: dict[str, int] = json.loads(out)
    return found


def chunk_reads(server: ObjectServer) -> int:
    return sum(count for key, count in server.served.items() if "chunks/" in key)


@contextlib.contextmanager
def ending(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=BOUND_S)


def test_ten_pulls_on_one_node_download_once(tmp_path: Path) -> None:
    built = random_model(files=2, size=800_000, chunk_bytes=16_000)
    built.store(tmp_path / "srv/store")
    with ObjectServer(tmp_path / "srv", delay_s=0.002) as server:
        reports = [finish(p) for p in [pull(server, tmp_path / "root", limit="10MiB") for _ in range(10)]]
        assert chunk_reads(server) == 100
        assert sorted(server.served[key] for key in server.served if "chunks/" in key) == [1] * 100
    assert sorted(r["fetched_chunks"] for r in reports) == [0] * 9 + [100]
    assert [r["reused_bytes"] for r in reports if not r["fetched_chunks"]] == [1_600_000] * 9
    folder = model_dir(tmp_path / "root", built.manifest.digest)
    assert built.same(folder)
    assert sorted(p.name for p in folder.parent.iterdir()) == sorted([folder.name, use_file(folder).name])


def test_another_takes_over_from_one_that_is_killed(tmp_path: Path) -> None:
    built = random_model(files=2, size=800_000, chunk_bytes=16_000)
    built.store(tmp_path / "srv/store")
    with ObjectServer(tmp_path / "srv", delay_s=0.01) as server:
        first = pull(server, tmp_path / "root")
        while chunk_reads(server) < 20:
            time.sleep(0.001)
        others = [pull(server, tmp_path / "root") for _ in range(3)]
        time.sleep(0.3)
        first.kill()
        first.communicate(timeout=BOUND_S)
        reports = [finish(process) for process in others]
        assert chunk_reads(server) <= 100 + 4, "at most what was in flight was fetched twice"
    assert sum(1 for r in reports if r["fetched_chunks"]) == 1
    assert built.same(model_dir(tmp_path / "root", built.manifest.digest))


def test_a_killed_user_is_no_user(tmp_path: Path) -> None:
    built = random_model(files=1, size=MIB, chunk_bytes=MIB)
    built.store(tmp_path / "srv/store")
    root = tmp_path / "root"
    with ObjectServer(tmp_path / "srv") as server:
        user = pull(server, root)
        with ending(user):
            assert user.stdout
            user.stdout.readline()
            assert holders(model_dir(root, built.manifest.digest)) == [user.pid]
            assert prune(root, 0) == []
    assert len(prune(root, 0)) == 1


def models(folder: Path, count: int, files: int = 8) -> list[Model]:
    """Models m0, m1, ... of 1 MiB each, in a store."""
    draw, built = random.Random(11), []
    for n in range(count):
        parts = {f"part-{k}.bin": draw.randbytes(MIB // files) for k in range(files)}
        built.append(model(parts, chunk_bytes=64 << 10, name=f"m{n}"))
        built[-1].store(folder)
    return built


def whole(root: Path, known: list[Model]) -> int:
    """Every visible model is one, byte for byte. Returns how many."""
    by_folder = {model_dir(root, m.manifest.digest): m for m in known}
    visible = [p for p in root.iterdir() if not p.name.startswith(".")]
    for folder in visible:
        assert by_folder[folder].same(folder)
        assert check_folder(folder) == []
    return len(visible)


def test_readers_evictors_and_kills_at_random(tmp_path: Path) -> None:
    """Six models, room for three. Readers check every byte that they hold; readers and evictors die at random."""
    known = models(tmp_path / "store", 6)
    root, draw = tmp_path / "root", random.Random(5)
    root.mkdir()
    limit = 3 * (MIB + SPARE_BYTES)
    seeds, kills, ended, most = iter(range(10_000)), 0, [], 0

    def reader(seconds: float) -> subprocess.Popen[bytes]:
        return start(READ, tmp_path / "store", "m0 m1 m2 m3 m4 m5", root, f"{limit}B", next(seeds), seconds)

    stay = reader(8.0)
    readers, evictor = [reader(3.0) for _ in range(3)], start(EVICT, root, MIB)
    deadline = time.monotonic() + 9
    while time.monotonic() < deadline:
        time.sleep(draw.random() * 0.5)
        most = max(most, sum(e.size for e in scan(root)))
        if draw.random() < 0.5:
            evictor.kill()
            evictor.communicate(timeout=BOUND_S)
            evictor = start(EVICT, root, MIB)
        else:
            victim = readers.pop(0)
            kills += victim.poll() is None
            victim.kill()
            ended.append(victim)
            readers.append(reader(3.0))
    with ending(evictor, *readers):
        total = finish(stay)
        for process in ended:
            _, err = process.communicate(timeout=BOUND_S)
            assert process.returncode in (0, -signal.SIGKILL), err.decode()
    assert kills >= 3
    assert total["read"] > 50
    assert total["fetched"] > 2, "what was evicted was fetched again"
    assert most <= limit
    prune(root, limit)
    whole(root, known)
    for m in known:
        finish(start(READ, tmp_path / "store", m.manifest.name, root, f"{limit}B", 1, 0.1))
    assert sum(e.size for e in scan(root)) <= limit
    prune(root, 0)
    assert list(root.iterdir()) == []


def test_evictions_killed_at_random_points(tmp_path: Path) -> None:
    """Models of many files, so that deleting takes a while: what is visible is whole, and a rerun finishes."""
    built = models(tmp_path / "store", 1, files=500)[0]
    root, draw, seen = tmp_path / "root", random.Random(9), set()
    folder, source = model_dir(root, built.manifest.digest), DictSource(built.objects)
    for _ in range(10):
        with ensure(built.manifest, root, lambda to: restore(built.manifest, source, to), budget=Budget(90, percent=True)):
            assert whole(root, [built]) == 1
        evictor = start(EVICT, root, 0)
        until = time.monotonic() + BOUND_S
        while folder.exists() and time.monotonic() < until and draw.random() > 0.002:
            time.sleep(0.0002)
        time.sleep(draw.random() * 0.01)
        evictor.kill()
        evictor.communicate(timeout=BOUND_S)
        seen.add((folder.exists(), any(p.name.endswith(".evicted") for p in root.iterdir())))
        whole(root, [built])
    assert (False, True) in seen, "some were killed while they deleted"
    prune(root, 0)
    assert list(root.iterdir()) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    for m in models(tmp_path / "store", 2):
        assert m.manifest.size == MIB
    served = Served(tmp_path, tmp_path / "store", (), {"BUILDER_MODEL": "m0", "BUILDER_CACHE_SIZE": "3MiB"})
    yield served
    if served.process.poll() is None:
        served.process.kill()
        served.process.wait(BOUND_S)


def test_a_server_and_its_engine_hold_the_model_as_long_as_they_live(tmp_path: Path, server: Served) -> None:
    server.until_ready()
    root = tmp_path / "models"
    (entry,) = scan(root)
    fds = Path(f"/proc/{server.engine_pid()}/fd")
    assert use_file(entry.folder) in {fd.readlink() for fd in fds.iterdir()}, "the engine inherits the lease"
    other = subprocess.run(
        [sys.executable, "-m", "builder.runtime", "prefetch", "m1"], env=server.env, capture_output=True, check=False
    )
    assert other.returncode == 4, "3 MiB hold one model and its spare room"
    assert b"0 of them not in use" in other.stderr
    assert prune(root, 0) == []
    assert server.end() == 0
    other = subprocess.run(
        [sys.executable, "-m", "builder.runtime", "prefetch", "m1"], env=server.env, capture_output=True, check=False
    )
    assert other.returncode == 0, other.stderr
    assert [e.digest for e in scan(root)] == [json.loads(other.stdout)["digest"]] != [entry.digest]
