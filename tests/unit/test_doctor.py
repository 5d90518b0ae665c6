"""What the doctor says of a machine where a program is missing, refuses, hangs or is broken: a finding each time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from builder import doctor, process
from builder.cli.group import run

Program = Callable[[str, str], None]
INFO = {"ServerVersion": "26.1.5", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """`program(name, body)`: a shell script of that name is the only one found besides the shell's own."""
    monkeypatch.setenv("PATH", str(tmp_path))
    real = process.which
    monkeypatch.setattr(process, "which", lambda name: found if (found := real(name)) and found.parent == tmp_path else None)

    def make(name: str, body: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    return make


def finding(name: str) -> doctor.Finding:
    return next(one for one in doctor.examine() if one.name == name)


def test_a_machine_with_nothing_is_told_what_to_install(program: Program) -> None:
    assert (finding("docker").ok, finding("docker").found) == (False, "no docker program")
    assert "make engine" in finding("docker").hint
    assert finding("containerd").hint == "apt-get install containerd"
    assert finding("mkfs.xfs").hint == "apt-get install xfsprogs"
    assert finding("gpu").found == "none; verify runs on the CPU"


def test_an_engine_that_answers_and_keeps_digests(program: Program) -> None:
    program("docker", f"echo '{json.dumps(INFO)}'")
    assert (finding("docker").ok, finding("docker").found) == (True, "engine 26.1.5")
    assert finding("containerd image store").ok


def test_an_engine_whose_store_loses_digests(program: Program) -> None:
    program("docker", f"echo '{json.dumps(INFO | {'DriverStatus': [['Backing Filesystem', 'extfs']]})}'")
    assert finding("docker").ok
    assert not finding("containerd image store").ok
    assert "daemon.json" in finding("containerd image store").hint


def test_an_engine_that_this_user_may_not_use(program: Program) -> None:
    program("docker", "echo 'permission denied while trying to connect' >&2; exit 1")
    assert finding("docker").found == "permission denied"
    assert "group docker" in finding("docker").hint


def test_an_engine_that_hangs_is_a_finding(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ANSWER_S", 0.3)
    monkeypatch.setattr("builder.image.backends.probe", list)  # asks it too, each back end for as long
    program("docker", "exec /bin/sleep 60")
    found = finding("docker")
    assert (found.ok, found.found) == (False, "no answer within 0 s")
    assert "restart" in found.hint


def test_a_driver_that_does_not_fit_is_told_in_its_own_words(program: Program) -> None:
    said = "Failed to initialize NVML: Driver/library version mismatch"
    program("nvidia-smi", f"echo '{said}'; exit 18")
    assert (finding("gpu").ok, finding("gpu").found) == (False, f"none; {said}")


def test_several_gpus_stand_in_one_line(program: Program) -> None:
    program("nvidia-smi", "echo 'NVIDIA H100, 580.65'; echo 'NVIDIA H100, 580.65'")
    assert finding("gpu").found == "NVIDIA H100, 580.65; NVIDIA H100, 580.65"


def test_too_little_space_says_how_much_to_free(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "FREE_BYTES", 1 << 60)
    with pytest.raises(SystemExit) as ended:
        run(["doctor", "--for", "bake", "--format", "json"])
    assert ended.value.code == 4
    findings = {one["name"]: one for one in json.loads(capsys.readouterr().out.splitlines()[0])["findings"]}
    assert findings["disk space"]["ok"] is False
    assert findings["disk space"]["hint"].startswith("free ")
