"""`builder bake disk` and `bake verify` end to end, from an OCI layout and from the Docker engine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from builder.cli.bake import disk as command
from builder.cli.bake import evidence
from builder.cli.group import run
from builder.process import need
from tests import oci

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root")]
ARGS = "/bin/sh -c 'id -u; cat /opt/app/data.txt'"


def code(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        run([str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_disk_and_all_that_belongs_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, asked = tmp_path / "bin", []
    programs.mkdir()
    for name in ("containerd", "ctr", "containerd-shim-runc-v2"):
        (programs / name).symlink_to(need(name))
    monkeypatch.setattr(command, "verified", lambda *a: asked.append(a[2].containerds) or evidence.verified(*a))
    oci.write_layout(tmp_path / "layout")
    out = tmp_path / "data.img"
    assert code("bake", "disk", out, "--oci", f"acme/llm:v7={tmp_path / 'layout'}", "--size", "1GiB", "--run", ARGS,
                "--snapshot-id", "snap-0a1b2c3d", "--cluster", "prod", "--containerd", programs,
                "--format", "json") == 0  # fmt: skip
    assert asked == [(programs,)]  # the machine may have no other
    data = json.loads(capsys.readouterr().out)
    assert data["volume"]["images"][0]["reference"] == "docker.io/acme/llm:v7"
    assert data["verify"]["containerds"][0]["runs"][0]["output"] == "10001\nsecond layer\n"
    beside = {p.name.removeprefix("data.img") for p in tmp_path.glob("data.img.*")}
    assert beside >= {".json", ".auto.pkrvars.json", ".ec2nodeclass.yaml", ".nodepool.yaml", ".user-data.toml"}
    assert {p.name for p in tmp_path.iterdir()} == {"data.img", *(f"data.img{s}" for s in beside), "layout", "bin"}
    node = yaml.safe_load((tmp_path / "data.img.ec2nodeclass.yaml").read_text())
    volume = node["spec"]["blockDeviceMappings"][1]["ebs"]
    assert (volume["snapshotID"], volume["volumeSize"]) == ("snap-0a1b2c3d", "1Gi")
    assert code("bake", "lint", tmp_path / "data.img.ec2nodeclass.yaml", "--disk", out) == 0

    capsys.readouterr()
    assert code("bake", "verify", out, "--run", "/bin/sh -c 'exit 9'", "--format", "json") == 7
    error = json.loads(capsys.readouterr().out)["error"]
    assert "exit status 9" in error["where"]["findings"][0]
    assert "--run ARGS" in error["hint"]  # baked again it would be the same disk
    assert code("bake", "verify", out) == 0  # an image without entry point runs /bin/true
    assert "/bin/true as 10001:0" in capsys.readouterr().out

    again = ["bake", "disk", out, "--oci", f"acme/llm:v8={tmp_path / 'layout'}", "--size", "1GiB", "--force"]
    assert code(*again, "--run", "/bin/sh -c 'exit 9'") == 7
    assert out.exists()
    for suffix in (".json", ".auto.pkrvars.json"):  # of the disk before: Packer would send this one under that one's digest
        assert not (tmp_path / f"data.img{suffix}").exists()


def test_a_server_is_not_baked_before_somebody_says_how_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the bake of a large image would end with a finding, and no files beside the disk."""
    oci.write_layout(tmp_path / "layout", entrypoint=("/bin/sleep",))
    bake = ["bake", "disk", tmp_path / "d.img", "--oci", tmp_path / "layout", "--size", "1GiB"]
    assert code(*bake) == 2
    said = capsys.readouterr().err
    assert "its entry point, /bin/sleep, is not known to end by itself" in said
    assert "--run" in said
    assert not (tmp_path / "d.img").exists()
    assert code(*bake, "--run", "0.1") == 0
    assert code(*bake, "--force", "--no-verify") == 0


def test_without_loop_devices_it_says_that_nothing_was_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oci.write_layout(tmp_path / "layout")
    assert code("bake", "disk", tmp_path / "d.img", "--oci", tmp_path / "layout", "--size", "1GiB", "--no-loop") == 0
    assert "not verified; on a machine with loop devices: builder bake verify" in capsys.readouterr().out


@pytest.mark.docker
def test_an_image_of_the_engine_keeps_its_digest(
    docker_engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `docker load` put there and what `FROM scratch` makes of it: the engine's digest is found on the disk."""
    name = "registry.example.com/builder-test/bake:v1"
    oci.write_layout(tmp_path / "layout", name=name)
    archive = oci.tar_layout(tmp_path / "layout", tmp_path / "image.tar")
    subprocess.run(["docker", "load", "--input", archive], check=True, capture_output=True)
    try:
        inspect = ["docker", "image", "inspect", "--format", "{{.Id}}", name]
        digest = subprocess.run(inspect, check=True, capture_output=True, text=True).stdout.strip()
        out = tmp_path / "d.img"
        assert code("bake", "disk", out, "--image", name, "--size", "1GiB", "--run", ARGS, "--format", "json") == 0
        data = json.loads(capsys.readouterr().out)
        assert data["volume"]["images"][0]["digest"] == digest
        assert data["verify"]["containerds"][0]["runs"][0]["reference"] == f"registry.example.com/builder-test/bake@{digest}"
    finally:
        subprocess.run(["docker", "image", "rm", "--force", name], check=True, capture_output=True)
