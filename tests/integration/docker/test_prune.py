"""A real build that takes GPU code out of a real wheel, proven by NVIDIA's own cuobjdump in the build itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from builder.cli.image import command as image_command
from builder.config.load import load
from builder.image.built import BuiltImage
from builder.pipeline import build_image
from builder.slim.chips import Chip
from builder.slim.prune import prune
from tests.conftest import DemoImage

pytestmark = pytest.mark.docker
FOLDER = Path(__file__).parent / "pruned"
SITE = "/opt/venv/lib/python3.11/site-packages"


@dataclass(frozen=True)
class Pruned:
    built: BuiltImage
    report: dict[str, Any]
    page: str


@pytest.fixture(scope="module")
def pruned(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pruned]:
    folder = tmp_path_factory.mktemp("pruned")
    shutil.copytree(FOLDER, folder / "image")
    built = build_image(load(folder / "image"), tag=f"builder-test/pruned-{uuid.uuid4().hex[:12]}:latest", oci=folder / "oci")
    page = folder / "page.html"
    arguments = ["report", str(folder / "oci"), "--html", str(page), "--format", "json"]
    done = CliRunner().invoke(image_command, arguments, catch_exceptions=False)
    yield Pruned(built, json.loads(done.stdout), page.read_text())
    subprocess.run(["docker", "rmi", "-f", built.reference], capture_output=True, check=False)


def inside(reference: str, script: str) -> str:
    command = ["docker", "run", "--rm", "--network=none", "--user", "0", "--entrypoint", "sh", reference, "-euc", script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_only_code_that_the_chip_can_use_is_left_and_the_report_tells_what_went(pruned: Pruned) -> None:
    code = pruned.report["gpu_code"]
    libraries = {one["path"].rpartition("/")[2]: one for one in code["libraries"]}
    assert len(libraries) == 7  # one for each CUDA that bitsandbytes supports
    for one in libraries.values():
        assert (one["status"], list(one["after"]), one["runs_on"]) == ("pruned", ["sm_90"], ["9.0"])
        assert one["after"]["sm_90"] == one["before"]["sm_90"] > 300_000
        assert len(one["before"]) > 6
    assert code["runs_on"] == [{"gpu": "9.0", "without_code": []}]
    assert code["before"] > 5 * code["after"]
    assert sum(one["after"] for one in code["chips"]) == code["after"]
    gone = sum(one["size_before"] - one["size_after"] for one in libraries.values())
    assert gone > 70_000_000
    [row] = [one for one in pruned.report["dropped"] if one["cause"] == "GPU code for other chips"]
    assert (row["package"], row["size"], row["files"]) == ("bitsandbytes", gone, 7)
    assert "GPU code" in pruned.page
    assert "libbitsandbytes_cuda128.so" in pruned.page


def test_the_image_says_what_was_done_to_it(pruned: Pruned) -> None:
    labels = pruned.report["labels"]
    assert labels["builder.prune"] == "oss"
    assert labels["builder.gpu-archs"] == "9.0"
    assert "builder.redistribution" not in labels


def test_the_libraries_of_the_image_have_nothing_more_to_drop(pruned: Pruned, tmp_path: Path) -> None:
    made = subprocess.run(
        ["docker", "create", pruned.built.reference], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        subprocess.run(["docker", "cp", "-q", f"{made}:{SITE}/bitsandbytes", tmp_path], check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rm", made], capture_output=True, check=True)
    found = [prune(path, None, (Chip(9, 0),)) for path in sorted((tmp_path / "bitsandbytes").glob("libbitsandbytes_cuda*.so"))]
    assert [one.status for one in found] == ["nothing-to-drop"] * 7


def test_layers_without_gpu_code_are_those_of_an_image_that_names_no_chips(pruned: Pruned, demo_image: DemoImage) -> None:
    done = CliRunner().invoke(image_command, ["report", str(demo_image.oci), "--format", "json"], catch_exceptions=False)
    other = {one["digest"] for one in json.loads(done.stdout)["layers"]}
    wheels = [one for one in pruned.report["layers"] if "/out/1/" in one["made_by"]]
    assert [one["digest"] in other for one in wheels] == [True, False, True]  # runtime, bitsandbytes, the engine


def test_nothing_of_the_pruner_and_its_proof_is_in_the_image(pruned: Pruned) -> None:
    assert inside(pruned.built.reference, "find / -xdev -name '*cuobjdump*' -o -xdev -path '*builder/slim/*.py'") == ""
    assert inside(pruned.built.reference, "ls -d /run/slim /run/proof /run/steps 2>/dev/null || :") == ""
    assert json.loads(inside(pruned.built.reference, "cat /opt/builder/slim/deps.json"))["gpus"] == ["9.0"]
    assert inside(pruned.built.reference, "ls /opt/builder/slim") == "deps.json\n"
