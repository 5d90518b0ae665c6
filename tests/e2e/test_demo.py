"""`builder demo` as a user runs it, and then the artefacts it leaves, each opened with somebody else's tool."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder.config.load import load
from builder.format.volume import marker_digest, model_dir
from builder.stores import rclone
from tests.bounds import BOUND_S

BUILDER = [sys.executable, "-c", "from builder.cli import main; main()"]


@dataclass(frozen=True)
class Demo:
    folder: Path
    told: dict[str, Any]
    talk: str


def demo(folder: Path, *words: str, **env: str) -> Demo:
    command = [*BUILDER, "demo", "--dir", str(folder), "--format", "json", "--progress", "plain", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return Demo(folder, json.loads(done.stdout), done.stderr)


@pytest.fixture(scope="module")
def whole(docker_engine: str, loop_root: None, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo(tmp_path_factory.mktemp("whole") / "demo")


@pytest.mark.docker
@pytest.mark.root
def test_the_whole_chain_runs_and_leaves_nothing_out(whole: Demo) -> None:
    assert whole.told["left_out"] == []
    assert list(whole.told["seconds"]) == ["model", "push", "damage", "image", "verify", "bake"]
    assert "\x1b" not in whole.talk
    assert whole.told["verify"]["ok"] is True
    assert "pacific" in whole.told["verify"]["answer"]["text"].lower()


@pytest.mark.docker
@pytest.mark.root
def test_the_flipped_bit_was_named_and_only_its_chunk_repaired(whole: Demo) -> None:
    damage, repair = whole.told["damage"], whole.told["repair"]
    assert damage["object"].startswith("chunks/sha256/")
    assert damage["tensors"]
    assert 0 < damage["end"] - damage["start"] <= repair["repaired_bytes"]
    assert (repair["repaired_chunks"], repair["objects"]) == (1, [damage["object"]])


@pytest.mark.docker
@pytest.mark.root
def test_every_phase_of_the_cold_start_is_in_the_report(whole: Demo) -> None:
    report = json.loads((whole.folder / "report" / "report.json").read_text())
    seen = {phase["phase"] for phase in report["runs"][0]["phases"]}
    assert {"container_start", "runtime_import", "weights_all", "engine_init", "first_token", "stable"} <= seen
    assert "weights\\_all" in (whole.folder / "report" / "report.md").read_text()
    assert "weights_all" in (whole.folder / "report" / "report.html").read_text()


@pytest.fixture(scope="module")
def container(whole: Demo) -> Iterator[tuple[str, str]]:
    """`docker run` of the built image against the demo's store, as a user would start it. Yields the two addresses."""
    image = whole.told["image"]["reference"]
    manifest = whole.told["model"]["digest"]
    with rclone.serve(whole.folder / "s3", host="0.0.0.0") as s3:
        port = s3.endpoint_url.rsplit(":", 1)[1]
        env = s3.env | {
            "BUILDER_STORE": "s3://models/smollm2",
            "BUILDER_ENDPOINT_URL": f"http://host.docker.internal:{port}",
            "BUILDER_MODEL": manifest,
        }
        names = [word for name in env for word in ("-e", name)]
        run = [
            "docker",
            "run",
            "-d",
            "--add-host=host.docker.internal:host-gateway",
            "-p",
            "127.0.0.1::8000",
            "-p",
            "127.0.0.1::8001",
        ]
        started = subprocess.run([*run, *names, image], capture_output=True, text=True, env=os.environ | env, check=True)
        box = started.stdout.strip()
        try:
            urls = [f"http://{_port(box, inner)}" for inner in ("8000", "8001")]
            _until_ready(urls[1], box)
            yield urls[0], urls[1]
        finally:
            subprocess.run(["docker", "rm", "-f", box], capture_output=True, check=True)


def _port(box: str, inner: str) -> str:
    return subprocess.run(["docker", "port", box, inner], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _until_ready(control: str, box: str, timeout_s: float = BOUND_S) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{control}/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    logs = subprocess.run(["docker", "logs", "--tail", "30", box], capture_output=True, text=True, check=False)
    raise AssertionError(f"not ready after {timeout_s} s\n{logs.stdout}{logs.stderr}")


@pytest.mark.docker
@pytest.mark.root
def test_docker_run_answers_a_chat_request(container: tuple[str, str], whole: Demo) -> None:
    question = {
        "model": whole.told["model"]["name"],
        "messages": [{"role": "user", "content": "What is the largest ocean on Earth?"}],
        "temperature": 0,
        "max_tokens": 24,
    }
    body = json.dumps(question).encode()
    request = urllib.request.Request(f"{container[0]}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=BOUND_S) as answer:
        text = json.load(answer)["choices"][0]["message"]["content"]
    assert "pacific" in text.lower()


@pytest.mark.docker
@pytest.mark.root
def test_metrics_and_phases_are_served(container: tuple[str, str]) -> None:
    with urllib.request.urlopen(f"{container[1]}/metrics", timeout=BOUND_S) as answer:
        metrics = answer.read().decode()
    assert re.search(r'^builder_phase_seconds\{[^}]*phase="weights_all"[^}]*\} \d', metrics, re.MULTILINE)
    assert "builder_ready 1" in metrics
    with urllib.request.urlopen(f"{container[1]}/phases", timeout=BOUND_S) as answer:
        assert {"weights_all", "engine_init", "first_token"} <= {phase["phase"] for phase in json.load(answer)}


@pytest.mark.docker
@pytest.mark.root
def test_the_image_holds_no_weights_and_no_secret(whole: Demo, tmp_path: Path) -> None:
    image = whole.told["image"]["reference"]
    history = subprocess.run(["docker", "history", "--no-trunc", image], capture_output=True, text=True, check=True).stdout
    config = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=True).stdout
    for word in ("AWS_SECRET", "AWS_ACCESS", "RCLONE", "BEGIN CERTIFICATE"):
        assert word not in history + config
    rootfs = tmp_path / "rootfs.tar"
    box = subprocess.run(["docker", "create", image], capture_output=True, text=True, check=True).stdout.strip()
    try:
        subprocess.run(["docker", "export", "-o", rootfs, box], check=True)
    finally:
        subprocess.run(["docker", "rm", box], capture_output=True, check=True)
    with tarfile.open(rootfs) as tar:
        members = {m.name: m for m in tar}
    assert not [n for n in members if n.endswith((".gguf", ".safetensors"))]
    assert not [n for n in members if re.search(r"bin/(gcc|cc|ld|pip3?)$|/(apt_sources|pip\.conf)$", n)]
    assert max(m.size for m in members.values()) < 120 << 20


@pytest.mark.docker
@pytest.mark.root
def test_the_volume_is_there_with_all_that_a_cluster_needs(whole: Demo) -> None:
    disk = whole.folder / "node.img"
    assert disk.stat().st_size == 4 << 30
    assert disk.stat().st_blocks * 512 < 1 << 30
    assert whole.told["volume"]["images"][0]["digest"] == whole.told["image"]["digest"]
    assert list(whole.told["volume"]["weights"]) == [whole.told["model"]["digest"]]
    assert "no pull, no network, the baked weights" in whole.talk
    assert "it served, answered and passed its own load test" in whole.talk
    for suffix in (".json", ".user-data.toml", ".ec2nodeclass.yaml", ".auto.pkrvars.json"):
        assert disk.with_name(disk.name + suffix).stat().st_size


@pytest.mark.docker
@pytest.mark.root
def test_the_restored_model_is_the_one_that_was_pushed(whole: Demo) -> None:
    digest = whole.told["model"]["digest"]
    folder = model_dir(whole.folder / "models", digest)
    assert marker_digest(folder) == digest
    source = Path(load(whole.folder).model_source)
    assert (folder / source.name).read_bytes() == source.read_bytes()


@pytest.mark.s3
def test_without_docker_the_load_test_runs_in_place_and_the_rest_is_said(tmp_path: Path) -> None:
    done = demo(tmp_path / "demo", DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert [line.split(":")[0] for line in done.told["left_out"]] == ["image", "bake"]
    assert done.told["verify"]["target"] == "in-place"
    assert done.told["verify"]["ok"] is True
    assert "left out: docker: no engine answers (install Docker" in done.talk


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    command = [*BUILDER, "demo", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 1
    assert "is not empty, and no demo made it" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "mine"
