"""What a push asks of S3: request by request, first, again, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from builder.models import source
from builder.stores.s3 import S3Store
from builder.transfer.checksum import crc64nvme_hex, sha256_hex
from builder.weights.index import Index
from tests.bounds import BOUND_S
from tests.conftest import S3
from tests.models import safetensors_model
from tests.unit.weights import build

pytestmark = pytest.mark.s3
BUILDER = [sys.executable, "-c", "from builder.cli import main; main()", "weights"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "builder" / "index"


def command(s3: S3, model: Path, *more: str) -> list[str]:
    return [
        *BUILDER,
        "push",
        str(model),
        "--name",
        "m",
        "--store",
        f"{s3.url}/p",
        "--endpoint-url",
        s3.endpoint_url,
        "-q",
        *more,
    ]


def run(s3: S3, model: Path, *more: str) -> dict[str, Any]:
    done = subprocess.run(command(s3, model, *more, "--format", "json"), capture_output=True, timeout=BOUND_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def objects(s3: S3) -> dict[str, tuple[int, int]]:
    """Inode and time of last write of every object; a PUT changes both, even of equal bytes."""
    root = s3.folder / s3.bucket
    return {str(p.relative_to(root)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


def settled(model: Path) -> None:
    """Wait until a file written now would have other time stamps than the model's."""
    newest = max(max(p.stat().st_mtime, p.stat().st_ctime) for p in model.iterdir())
    time.sleep(max(0.0, newest + source.SETTLED_S + 0.1 - time.time()))


def test_again_unchanged_there_is_no_put(s3: S3, cache: Path, tmp_path: Path) -> None:
    model = safetensors_model(tmp_path / "model", layers=6, hidden=512, shards=2)
    settled(model)
    first = run(s3, model)
    before = objects(s3)
    again = run(s3, model)
    assert objects(s3) == before
    assert not [key for key in before if "leases" in key]
    assert (again["read_bytes"], again["sent_chunks"], again["digest"]) == (0, 0, first["digest"])
    victim = max((s3.folder / s3.bucket / "p" / "chunks").rglob("?" * 64), key=lambda p: p.stat().st_size)
    size = victim.stat().st_size
    victim.unlink()
    assert run(s3, model)["sent_bytes"] == size
    assert victim.stat().st_size == size


def test_a_first_push_asks_for_no_chunk(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One listing says what is there; then one PUT each, under the condition that there is still none."""
    monkeypatch.setattr(source, "SETTLED_S", 0.0)
    model = safetensors_model(tmp_path / "model", layers=4, shards=2)
    store, index = S3Store(s3.url, endpoint_url=s3.endpoint_url), Index(tmp_path / "index")
    store.size("refs/m")  # answered once: from now on one client for all requests
    asked: Counter[str] = Counter()

    def note(request: Any, event_name: str, **_: Any) -> None:
        kind = next((k for k in ("chunks", "leases", "manifests", "refs") if f"/{k}" in request.url), "list")
        asked[f"{event_name.rpartition('.')[2]} {kind}"] += 1
        if event_name.endswith("PutObject") and kind == "chunks":
            assert request.headers["If-None-Match"] in ("*", b"*")

    store._client.meta.events.register("before-send.s3", note)
    first = build.push(model, store, index=index)
    assert asked["PutObject chunks"] == first.chunks
    assert (asked["HeadObject chunks"], asked["GetObject chunks"]) == (0, 0)
    asked.clear()
    build.push(model, store, index=index)
    assert not [name for name in asked if name.startswith(("Put", "Delete", "Head"))]
    assert sum(asked.values()) <= 3  # the ref, the manifest, the listing


def test_a_killed_push_goes_on_where_it_was(s3: S3, cache: Path, tmp_path: Path) -> None:
    """kill -9: what was stored is neither sent nor, file by file, read again."""
    model = safetensors_model(tmp_path / "model", layers=8, hidden=1024, vocab=8000, shards=6)  # 145 MB
    settled(model)
    chunks = s3.folder / s3.bucket / "p" / "chunks"
    push = subprocess.Popen(command(s3, model, "--concurrency", "2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + BOUND_S
    while push.poll() is None and len(list(chunks.rglob("?" * 64))) < 10 and time.monotonic() < end:
        time.sleep(0.005)
    os.kill(push.pid, signal.SIGKILL)
    assert push.wait(BOUND_S) == -signal.SIGKILL
    assert not list((s3.folder / s3.bucket).rglob("refs/*"))
    known = sum(line.count(b" piece ") for line in (p.read_bytes() for p in cache.iterdir()))
    assert known >= 5
    done = run(s3, model)
    assert done["sent_chunks"] <= done["chunks"] - known
    assert done["read_bytes"] < done["bytes"]  # the files that were complete are not even opened
    assert run(s3, model)["read_bytes"] == 0


def test_a_put_copies_no_body(s3: S3) -> None:
    """Neither the client's own layers nor its signer."""
    store = S3Store(s3.url, endpoint_url=s3.endpoint_url)
    body = bytearray(os.urandom(4 << 20))
    digests = {"sha256": sha256_hex(body), "crc64nvme": crc64nvme_hex(body)}
    store.put("warm", body, **digests, absent=True)
    tracemalloc.start()
    try:
        store.put("k", body, **digests, absent=True)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert store.get("k", len(body)) == body
