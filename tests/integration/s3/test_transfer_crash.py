"""Processes that die, and processes that meet: nothing half-written is visible, nothing is fetched twice."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builder.format.volume import JOURNAL, marker_digest, partial_dir
from builder.transfer.check import check_folder
from tests.bounds import BOUND_S
from tests.servers.objects import ObjectServer
from tests.unit.transfer.build import Model, model, random_model

PROGRAM = """
import json, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with SIGINT ignored
from builder.transfer.manifests import read_manifest
from builder.transfer.restore import restore
from builder.transfer.source import open_source
url, folder, concurrency = sys.argv[1:]
source = open_source(url)
report = restore(read_manifest(source, "m"), source, Path(folder), concurrency=int(concurrency))
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(json.dumps({**report.to_json(), "peak_kib": peak}))
"""


def start(server: ObjectServer, folder: Path, concurrency: int = 4) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, f"{server.endpoint_url}/store", str(folder), str(concurrency)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> dict[str, object]:
    out, err = process.communicate(timeout=BOUND_S)
    assert process.returncode == 0, err.decode()
    found: dict[str, object] = json.loads(out)
    return found


def chunk_reads(server: ObjectServer) -> int:
    return sum(count for key, count in server.served.items() if "chunks/" in key)


def journaled(folder: Path) -> set[str]:
    path = partial_dir(folder) / JOURNAL
    return set(path.read_text().split()[1:]) if path.exists() else set()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_killed_at_random_moments_it_completes_and_fetches_no_finished_chunk_again(tmp_path: Path, name: str) -> None:
    built = random_model(files=3, size=1_600_000, chunk_bytes=16_000, seed=7)
    built.store(tmp_path / "srv/store")
    folder, draw, kills = tmp_path / "m", random.Random(name), 0
    with ObjectServer(tmp_path / "srv", delay_s=0.002) as server:
        for _ in range(10):
            finished = journaled(folder)
            server.forget()
            process = start(server, folder)
            goal = draw.randrange(1, 40)
            while chunk_reads(server) < goal and process.poll() is None:
                time.sleep(0.001)
            time.sleep(draw.random() * 0.005)
            process.send_signal(signal.Signals[name])
            process.communicate(timeout=BOUND_S)
            again = finished & {key.rpartition("/")[2] for key in server.served}
            assert not again, "a chunk whose record was on disk was fetched again"
            if folder.exists():
                break
            kills += 1
            assert marker_digest(partial_dir(folder)) is None
        assert kills >= 8
        finished = journaled(folder)
        assert finished
        server.forget()
        report = finish(start(server, folder))
        assert chunk_reads(server) == report["fetched_chunks"] == 300 - len(finished)
    assert built.same(folder)
    assert check_folder(folder, deep=True) == []
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_killed_near_the_end_the_folder_is_there_complete_or_not_at_all(tmp_path: Path) -> None:
    built = random_model(files=40, size=200, chunk_bytes=100)
    built.store(tmp_path / "srv/store")
    draw = random.Random(3)
    seen = set()
    with ObjectServer(tmp_path / "srv") as server:
        for n in range(8):
            folder = tmp_path / f"m{n}"
            server.forget()
            process = start(server, folder)
            while chunk_reads(server) < 80 and process.poll() is None:
                time.sleep(0.0005)
            time.sleep(draw.random() * 0.03)
            process.kill()
            process.communicate(timeout=BOUND_S)
            seen.add(folder.exists())
            assert not folder.exists() or built.same(folder)
            finish(start(server, folder))
            assert built.same(folder)
    assert False in seen, "some were killed before the rename"


def test_several_processes_download_one_folder_once(tmp_path: Path) -> None:
    built = random_model(files=2, size=800_000, chunk_bytes=16_000)
    built.store(tmp_path / "srv/store")
    with ObjectServer(tmp_path / "srv", delay_s=0.002) as server:
        reports = [finish(p) for p in [start(server, tmp_path / "m") for _ in range(4)]]
        assert chunk_reads(server) == 100
    assert sorted(r["fetched_chunks"] for r in reports) == [0, 0, 0, 100]  # type: ignore[type-var]
    assert built.same(tmp_path / "m")


def test_a_waiter_takes_over_from_a_killed_writer(tmp_path: Path) -> None:
    built = random_model(files=2, size=800_000, chunk_bytes=16_000)
    built.store(tmp_path / "srv/store")
    with ObjectServer(tmp_path / "srv", delay_s=0.01) as server:
        first = start(server, tmp_path / "m")
        while chunk_reads(server) < 20:
            time.sleep(0.001)
        second = start(server, tmp_path / "m")
        time.sleep(0.3)
        first.kill()
        first.communicate(timeout=BOUND_S)
        report = finish(second)
        assert chunk_reads(server) <= 100 + 4, "at most what was in flight was fetched twice"
        assert int(str(report["reused_bytes"])) > 0
    assert built.same(tmp_path / "m")


def big_model(chunk: int, count: int) -> Model:
    return model({"w.safetensors": random.Random(5).randbytes(chunk * count)}, chunk_bytes=chunk)


def test_memory_is_bounded_by_concurrency_times_chunk(tmp_path: Path) -> None:
    """Peak resident memory of the process, 160 MiB through 4 connections of 4 MiB, above that of a tiny model."""
    chunk, workers, count = 4 << 20, 4, 40
    big_model(chunk, count).store(tmp_path / "srv/store")
    random_model(files=1, size=100).store(tmp_path / "tiny/store")
    with ObjectServer(tmp_path / "tiny") as server:
        base = int(str(finish(start(server, tmp_path / "t", workers))["peak_kib"])) << 10
    with ObjectServer(tmp_path / "srv") as server:
        peak = int(str(finish(start(server, tmp_path / "m", workers))["peak_kib"])) << 10
    assert peak - base < workers * chunk + (16 << 20)
