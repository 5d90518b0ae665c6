"""The wheel carries what the commands read: templates, packer and images, found without a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run(pip, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    with zipfile.ZipFile(next(folder.glob("coldstart_builder-*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_data_folders_are_in_it(unpacked: Path) -> None:
    data = unpacked / "builder" / "data"
    for name in ("templates/image/stages.Dockerfile.j2", "packer/aws/data-volume.pkr.hcl", "images/demo-llama-cpp/verify"):
        assert (data / name).read_bytes() == (ROOT / name).read_bytes()
    assert not list(unpacked.rglob("tests"))


def test_commands_work_from_it_alone(unpacked: Path, tmp_path: Path) -> None:
    """`render` reads templates and the shipped set; -P and PYTHONPATH keep the checkout out of sight."""
    described = unpacked / "builder" / "data" / "images" / "demo-llama-cpp" / "builder.yaml"
    program = "import builder, sys; assert builder.__file__.startswith(sys.argv.pop(1)); from builder.cli import main; main()"
    command = [
        sys.executable,
        "-P",
        "-c",
        program,
        str(unpacked),
        "render",
        "-f",
        str(described),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, env={"PYTHONPATH": str(unpacked)}, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "builder" / "runtime" / "serve.py").is_file()
