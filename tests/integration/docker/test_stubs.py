"""A real build that puts stubs in the places of two of NVIDIA's libraries, and what the image then says and does."""

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

from builder.cli.build import command as build_command
from builder.cli.image import command as image_command

pytestmark = pytest.mark.docker
FOLDER = Path(__file__).parent / "stubbed"
LIBRARIES = "/opt/venv/lib/python3.11/site-packages/nvidia/cu13/lib"


@dataclass(frozen=True)
class Stubbed:
    reference: str
    said: str
    report: dict[str, Any]


@pytest.fixture(scope="module")
def stubbed(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stubbed]:
    folder, reference = tmp_path_factory.mktemp("stubbed"), f"builder-test/stubbed-{uuid.uuid4().hex[:12]}:latest"
    shutil.copytree(FOLDER, folder / "image")
    arguments = ["-f", str(folder / "image" / "builder.yaml"), "--tag", reference, "--oci", str(folder / "oci")]
    built = CliRunner().invoke(build_command, arguments, catch_exceptions=False)
    done = CliRunner().invoke(image_command, ["report", str(folder / "oci"), "--format", "json"], catch_exceptions=False)
    yield Stubbed(reference, built.stderr, json.loads(done.stdout))
    subprocess.run(["docker", "rmi", "-f", reference], capture_output=True, check=False)


def python(reference: str, program: str) -> subprocess.CompletedProcess[str]:
    command = ["docker", "run", "--rm", "--network=none", "--entrypoint", "/opt/venv/bin/python", reference, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_report_names_each_stub_and_what_it_saves(stubbed: Stubbed) -> None:
    found = {one["stub"]: one for one in stubbed.report["gpu_code"]["stubs"]}
    assert set(found) == {"curand", "cufile"}
    assert (found["curand"]["before"], found["curand"]["package"]) == (132_698_328, "nvidia-curand")
    assert found["curand"]["after"] < 10_000
    [row] = [one for one in stubbed.report["dropped"] if one["package"] == "nvidia-curand" and "stub" in one["cause"]]
    assert row["size"] == found["curand"]["before"] - found["curand"]["after"]
    assert stubbed.report["labels"]["builder.stubs"] == "curand,cufile"


def test_the_engine_imports_beside_them_and_a_call_says_how_to_get_a_library_back(stubbed: Stubbed) -> None:
    whole = python(stubbed.reference, f"import ctypes, xllamacpp; ctypes.CDLL('{LIBRARIES}/libcurand.so.10'); print('loaded')")
    assert whole.stdout == "loaded\n", whole.stderr
    called = python(stubbed.reference, f"import ctypes; ctypes.CDLL('{LIBRARIES}/libcurand.so.10').curandGetVersion()")
    assert called.returncode == 134
    assert "take curand out of image.stubs in builder.yaml and build again" in called.stderr


def test_a_build_says_that_the_set_is_untried(stubbed: Stubbed) -> None:
    assert "warning: image.stubs: curand, cufile untried with llama.cpp 2026.10.11549" in stubbed.said
