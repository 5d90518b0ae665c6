"""kill -9 in the middle of `weights push`: the next run completes, and moves only what is missing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bounds import BOUND_S
from tests.conftest import S3
from tests.models import safetensors_model

BUILDER = [sys.executable, "-c", "from builder.cli import main; main()", "weights"]


def run(*args: str) -> dict[str, object]:
    done = subprocess.run([*BUILDER, *args, "--format", "json", "-q"], capture_output=True, timeout=BOUND_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return safetensors_model(tmp_path_factory.mktemp("m") / "model", layers=6, hidden=1024, vocab=8000)  # 112 MB


def settled(root: Path) -> set[str]:
    """Names of the stored chunks, once the server has ended what the killed clients had sent in full."""
    names, since = set[str](), time.monotonic()
    while time.monotonic() - since < 1:
        found = {p.name for p in root.glob("chunks/sha256/*/*") if len(p.name) == 64}  # not rclone's own leftovers
        if found != names:
            names, since = found, time.monotonic()
        time.sleep(0.05)
    return names


@pytest.mark.parametrize("kind", ["directory", pytest.param("s3", marks=pytest.mark.s3)])
def test_killed_pushes_leave_no_model_and_lose_no_chunk(
    kind: str, model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options = ["--store", str(tmp_path / "store"), "--concurrency", "2"]
    root = tmp_path / "store"
    if kind == "s3":
        s3: S3 = request.getfixturevalue("s3")
        options = ["--store", s3.url, "--endpoint-url", s3.endpoint_url, "--concurrency", "2"]
        root = s3.folder / s3.bucket
    draw = random.Random(kind)
    killed = 0
    for _ in range(4):
        push = subprocess.Popen(
            [*BUILDER, "push", str(model), *options, "-q"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before, deadline = chunks(root), time.monotonic() + BOUND_S
        while push.poll() is None and chunks(root) <= before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        if push.poll() is None:
            os.kill(push.pid, signal.SIGKILL)
            killed += 1
        push.wait()
        if not killed:
            break
        if push.returncode == 0:
            break
        assert not list(root.glob("refs/*"))
    assert killed
    there = settled(root)
    dry = run("push", str(model), *options, "--dry-run")
    done = run("push", str(model), *options)
    assert done["digest"] == dry["digest"]
    assert there
    assert done["sent_chunks"] == int(str(done["chunks"])) - len(there)
    assert run("verify", *options[:-2])["ok"]
    assert run("push", str(model), *options)["sent_chunks"] == 0


def chunks(root: Path) -> int:
    return len(list(root.glob("chunks/sha256/*/*")))
