"""The scripts that Packer runs on an instance: the disk is written onto a real device; the bake is called as it should be."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder import resources
from builder.node import disk
from builder.node.targets import WholeDisk
from tests.bounds import BOUND_S

SCRIPTS = resources.folder("packer")
SIZE = 32 << 20
LOG = '#!/bin/sh\n{ printf "%s" "${0##*/}"; printf "\\t%s" "$@"; echo; } >> "$CALLS"\n'


def sh(script: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], **environ}
    return subprocess.run(["sh", script], env=env, capture_output=True, text=True, timeout=BOUND_S, check=False)


@pytest.fixture
def device(loop_root: None, tmp_path: Path) -> Iterator[Path]:
    """An empty volume."""
    disk.create(tmp_path / "volume", SIZE)
    with disk.attached(tmp_path / "volume", WholeDisk(SIZE)) as found:
        yield found


@pytest.mark.root
def test_the_disk_is_written_onto_the_volume_and_read_back(device: Path, tmp_path: Path) -> None:
    image = tmp_path / "data.img"
    disk.create(image, SIZE - (1 << 20))  # a volume may be larger
    with image.open("r+b") as out:
        for at in (0, (5 << 20) + 512, SIZE - (1 << 20) - 512):
            out.seek(at)
            out.write(os.urandom(512))
    done = sh(SCRIPTS / "write-disk.sh", IMAGE=str(image), DEVICE=str(device))
    assert done.returncode == 0, done.stderr
    assert device.read_bytes() == image.read_bytes().ljust(SIZE, b"\0")
    assert (tmp_path / "volume").stat().st_blocks * 512 < SIZE / 4  # only what holds something was written
    disk.create(tmp_path / "large.img", SIZE + 512)
    assert sh(SCRIPTS / "write-disk.sh", IMAGE=str(tmp_path / "large.img"), DEVICE=str(device)).returncode
    assert sh(SCRIPTS / "write-disk.sh", IMAGE=str(image), DEVICE=str(image)).returncode  # not a device
    assert "DEVICE" in sh(SCRIPTS / "write-disk.sh", IMAGE=str(image)).stderr


@pytest.mark.parametrize("run", ["", "--version"])
def test_the_instance_installs_what_the_bake_and_its_proof_need(tmp_path: Path, run: str) -> None:
    """With stand-ins for the package managers: asking containerd as kubelet does takes more than the package alone."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name in ("apt-get", "python3", "pip", "builder"):
        (programs / name).write_text(LOG)
        (programs / name).chmod(0o755)
    text = (SCRIPTS / "run-bake.sh").read_text()
    script = tmp_path / "run-bake.sh"
    script.write_text(text.replace("/opt/builder/bin", str(programs)).replace("/var/tmp/baked", str(tmp_path / "baked")))
    name = "registry.example.com/llm/llama:v1"
    done = sh(script, PATH=f"{programs}:/usr/bin:/bin", CALLS=str(calls), TARGET="raw", SIZE="9GiB", REFERENCE=name, RUN=run,
              PACKAGE="/tmp/coldstart_builder-1-py3-none-any.whl")  # fmt: skip
    assert done.returncode == 0, done.stderr
    apt, packages, venv, pip, bake = (line.split("\t") for line in calls.read_text().splitlines())
    assert (apt[1], venv[1:]) == ("update", ["-m", "venv", "/opt/builder"])
    assert {"containerd", "runc", "xfsprogs", "e2fsprogs", "iproute2"} <= set(packages)
    assert pip[-2:] == ["/tmp/coldstart_builder-1-py3-none-any.whl", "coldstart-builder[bake]"]
    out = str(tmp_path / "baked/data.img")
    assert bake[1:9] == ["bake", "disk", out, "--target", "raw", "--size", "9GiB", "--oci"]
    assert bake[9:] == [f"{name}=/var/tmp/image.tar", *(["--run", run] if run else [])]
