"""A model of the hub into a store, through the CLI, while the hub fails: no local copy, no wrong byte, no token anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download

from tests.bounds import BOUND_S
from tests.conftest import S3
from tests.models import safetensors_model
from tests.servers.hub import REPO, TRANSIENT, Access, HubServer
from tests.servers.objects import random_faults

BUILDER = [sys.executable, "-c", "from builder.cli import main; main()"]
SECRET = "hf_thesecrettokenofthistest"
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return safetensors_model(tmp_path_factory.mktemp("m") / "model", layers=3, hidden=512, vocab=3000, shards=2)  # 26 MB


@pytest.fixture
def server(model: Path) -> Iterator[HubServer]:
    with HubServer(model, access=Access("private", SECRET)) as server:
        yield server
        assert server.strange == []


class Box:
    """A machine of its own: everything that the CLI may write to besides the store is below `home`."""

    def __init__(self, home: Path, server: HubServer) -> None:
        self.home = home
        (home / "tmp").mkdir(parents=True)
        self.env = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "HF_HOME": str(home / "hf")}
        self.env |= {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": SECRET}

    def start(self, *args: str | Path) -> subprocess.Popen[bytes]:
        words = [*BUILDER, *map(str, args), "--format", "json"]
        gone = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "XDG_CACHE_HOME")
        env = {k: v for k, v in os.environ.items() if k.upper() not in gone and not k.startswith("HF_")} | self.env
        return subprocess.Popen(words, env=env, cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *args: str | Path, code: int = 0) -> dict[str, Any]:
        return self.end(self.start(*args), code)

    def end(self, process: subprocess.Popen[bytes], code: int = 0) -> dict[str, Any]:
        out, err = process.communicate(timeout=BOUND_S)
        assert process.returncode == code, err.decode()
        assert SECRET.encode() not in out + err
        found: dict[str, Any] = json.loads(out)
        return found

    def bytes(self) -> int:
        """Of all files."""
        total = 0
        for folder, _, names in os.walk(self.home):
            for name in names:
                try:
                    total += (Path(folder) / name).stat().st_size
                except FileNotFoundError:
                    continue
        return total


@pytest.fixture
def box(tmp_path: Path, server: HubServer) -> Box:
    return Box(tmp_path / "home", server)


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], Path]:
    """The options that name it, and the folder its objects lie in."""
    if request.param == "directory":
        return ["--store", str(tmp_path / "store")], tmp_path / "store"
    s3: S3 = request.getfixturevalue("s3")
    return ["--store", f"{s3.url}/models", "--endpoint-url", s3.endpoint_url], s3.folder / s3.bucket / "models"


def folder_store(path: Path) -> list[str]:
    return ["--store", str(path)]


def manifest(store: Path) -> bytes:
    (found,) = (p for p in (store / "manifests" / "sha256").rglob("*") if p.is_file() and p.suffix != ".sig")
    return found.read_bytes()


def content(folder: Path) -> dict[str, bytes]:
    inside = (p for p in folder.rglob("*") if p.is_file() and ".builder" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in inside}


def test_a_model_is_streamed_into_the_store(
    server: HubServer, box: Box, store: tuple[list[str], Path], model: Path, tmp_path: Path
) -> None:
    options, folder = store
    push, peak = box.start("weights", "push", f"hf://{REPO}", *options), 0
    while push.poll() is None:
        peak = max(peak, box.bytes())
        time.sleep(0.01)
    pushed = box.end(push)
    assert pushed["revision"] == server.commit
    assert peak < 1 << 20, "a copy of the model was made"
    assert not list((box.home / "hf").rglob("*.safetensors"))
    ranges = [r.range.removeprefix("bytes=").split("-") for r in server.requests if r.range and r.where == "cdn"]
    fetched = sum(int(last) - int(first) + 1 for first, last in ranges)
    assert fetched < pushed["bytes"] * 1.01, "bytes were fetched twice"

    box.run("weights", "pull", "model", *options, "--to", tmp_path / "out")
    assert content(tmp_path / "out") == content(model)
    for path in (p for root in (folder, box.home) for p in root.rglob("*") if p.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


def test_the_manifest_is_the_same_from_the_clients_cache(server: HubServer, box: Box, tmp_path: Path) -> None:
    box.run("weights", "push", f"hf://{REPO}", *folder_store(tmp_path / "streamed"))
    snapshot_download(REPO, endpoint=server.endpoint, token=SECRET, cache_dir=box.home / "hf" / "hub")
    server.requests.clear()
    box.run("weights", "push", f"hf://{REPO}", *folder_store(tmp_path / "cached"))
    assert {r.where for r in server.requests} == {"api"}
    assert manifest(tmp_path / "streamed") == manifest(tmp_path / "cached")


def test_the_token_that_the_description_names(server: HubServer, box: Box, tmp_path: Path) -> None:
    del box.env["HF_TOKEN"]
    described = f"""\
version: 1
name: m
model: {{source: "hf://{REPO}", token: {{env: MY_TOKEN}}}}
weights: {{store: {tmp_path / "store"}}}
image: {{repository: m, engine: {{name: transformers, version: "5.23.0"}}, python: "3.12"}}
"""
    (box.home / "builder.yaml").write_text(described)
    assert "MY_TOKEN" in box.run("weights", "push", code=2)["error"]["message"]
    box.env["MY_TOKEN"] = SECRET
    assert box.run("weights", "push")["revision"] == server.commit
    assert SECRET not in (box.home / "builder.lock").read_text()


def test_wrong_bytes_are_refused_by_the_hubs_sha256(server: HubServer, box: Box, model: Path, tmp_path: Path) -> None:
    wanted = server.commits[server.commit][SHARD].sha256
    server.plan = lambda key, asked: "swap" if key == f"cdn/{SHARD}" and asked >= 2 else ""  # after its header
    error = box.run("weights", "push", f"hf://{REPO}", *folder_store(tmp_path / "store"), code=3)["error"]
    assert SHARD in error["message"]
    assert wanted in error["message"]
    assert not list((tmp_path / "store").glob("manifests/**/*"))
    assert not list((tmp_path / "store").glob("refs/*"))

    server.plan = lambda key, asked: ""
    box.run("weights", "push", f"hf://{REPO}", *folder_store(tmp_path / "store"))
    box.run("weights", "pull", "model", *folder_store(tmp_path / "store"), "--to", tmp_path / "out")
    assert content(tmp_path / "out") == content(model)


def test_a_twentieth_of_all_requests_fails(server: HubServer, box: Box, model: Path, tmp_path: Path) -> None:
    server.plan = random_faults(0.05, seed=2, faults=TRANSIENT, only="")
    small = ["--chunk-size", "8MiB", "--concurrency", "4"]
    for n in range(2):
        box.run("weights", "push", f"hf://{REPO}", *folder_store(tmp_path / str(n)), *small)
    assert server.failed
    assert manifest(tmp_path / "0") == manifest(tmp_path / "1")
    box.run("weights", "pull", "model", *folder_store(tmp_path / "1"), "--to", tmp_path / "out")
    assert content(tmp_path / "out") == content(model)


def test_a_killed_push_is_completed_by_the_next(server: HubServer, box: Box, model: Path, tmp_path: Path) -> None:
    small = ["--chunk-size", "8MiB", "--concurrency", "2"]
    box.run("weights", "push", f"hf://{REPO}", *folder_store(tmp_path / "whole"), *small)
    killed, store = 0, tmp_path / "store"
    server.pause_s = 0.1
    for wanted in (1, 2):
        push = box.start("weights", "push", f"hf://{REPO}", *folder_store(store), *small)
        deadline = time.monotonic() + BOUND_S
        while push.poll() is None and len(list(store.glob("chunks/sha256/*/*"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        if push.poll() is None:
            os.kill(push.pid, signal.SIGKILL)
            killed += 1
        push.communicate()
        assert not list(store.glob("refs/*"))
    assert killed
    server.pause_s = 0.0
    done = box.run("weights", "push", f"hf://{REPO}", *folder_store(store), *small)
    assert done["reused_chunks"] > 0
    assert manifest(store) == manifest(tmp_path / "whole")


def test_a_store_is_repaired_from_the_hub(server: HubServer, box: Box, tmp_path: Path) -> None:
    options, folder = folder_store(tmp_path / "store"), tmp_path / "store"
    box.run("weights", "push", f"hf://{REPO}", *options)
    victim = max(folder.glob("chunks/sha256/*/*"), key=lambda p: p.stat().st_size)
    victim.write_bytes(bytes(victim.stat().st_size))
    server.requests.clear()
    repaired = box.run("weights", "repair", "model", "--from", f"hf://{REPO}", *options)
    assert repaired["repaired_chunks"] == 1
    assert server.count("cdn") == 1, "only the bad chunk is fetched"
    assert box.run("weights", "verify", "model", *options)["ok"]


def test_a_gated_model_is_refused_before_anything_is_stored(server: HubServer, box: Box, tmp_path: Path) -> None:
    server.access = Access("gated")
    error = box.run("weights", "push", f"hf://{REPO}", *folder_store(tmp_path / "store"), code=5)["error"]
    assert "gated" in error["message"]
    assert not list((tmp_path / "store").glob("chunks/**/*"))
