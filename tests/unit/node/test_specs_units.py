"""Units and scripts: systemd, the shell and shellcheck take them; the scripts call the clouds' programs as they should."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder import process, resources
from builder.node.specs import gke, user_data
from tests.bounds import BOUND_S
from tests.conftest import missing
from tests.specs import IDS, TARGETS, hot_texts, made, ref

LABELLED = ("al2023-volume", "azure-data", "raw")


# --- units ---------------------------------------------------------------------------------------------------------------


def verify(folder: Path, unit: str) -> str:
    """What systemd says against the unit, with nothing but `folder` and the machine's own units around it. "" is good."""
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=BOUND_S, check=False,
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "SYSTEMD_UNIT_PATH": f"{folder}:", "HOME": "/"},
    )  # fmt: skip
    return done.stdout + done.stderr if done.returncode or done.stderr else ""


@pytest.fixture
def installed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The units, written by the set-up script itself; and a containerd and kubelet for them to be ordered with."""
    if process.which("systemd-analyze") is None:
        missing("root", "systemd-analyze is not installed")
    script = tmp_path / "setup.sh"
    script.write_text(made(request.param, hot=hot_texts(request.param))[".setup.sh"])
    root = tmp_path / "root"
    for unit in ("containerd", "kubelet"):
        (root / "etc/systemd/system").mkdir(parents=True, exist_ok=True)
        (root / f"etc/systemd/system/{unit}.service").write_text("[Service]\nExecStart=/bin/true\n")
    process.run(["sh", script], env={"PATH": "/usr/bin:/bin", "ROOT": str(root), "START": "no"}, timeout_s=BOUND_S)
    return root / "etc/systemd/system"


@pytest.mark.parametrize("installed", LABELLED, indirect=True)
def test_systemd_takes_the_units(installed: Path) -> None:
    for unit in (*user_data.MOUNTS, user_data.HOT, "containerd.service"):
        assert verify(installed, str(installed / unit)) == ""
    wanted = {path.name for path in installed.glob("*.wants/*")}
    assert wanted >= set(user_data.MOUNTS)  # the script enabled them


@pytest.mark.parametrize("installed", ["raw"], indirect=True)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Where=/var/lib/containerd", "Where=/var/lib/elsewhere"),  # the name says otherwise
        ("Options=bind", "Option=bind"),
        ("What=/var/lib/builder/volume/var/lib/containerd", ""),
    ],
)
def test_systemd_refuses_a_broken_unit(installed: Path, old: str, new: str) -> None:
    path = installed / "var-lib-containerd.mount"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert verify(installed, str(path))


@pytest.mark.parametrize("installed", ["al2023-volume"], indirect=True)
def test_containerd_waits_for_the_disk_and_does_without_it(installed: Path) -> None:
    text = (installed / user_data.DROP_IN).read_text()
    assert "After=var-lib-containerd.mount" in text
    assert "Requires=" not in text
    assert re.search(r"^ExecStartPost=-.*pause\.tar", text, re.MULTILINE)


def test_the_file_system_is_the_disks() -> None:
    units = user_data.unit_files(ref("raw", filesystem="ext4"))
    assert "Type=ext4" in units["var-lib-builder-volume.mount"]


# --- scripts -------------------------------------------------------------------------------------------------------------


def scripts() -> Iterator[tuple[str, str]]:
    for target in TARGETS:
        yield from ((f"{target}{name}", text) for name, text in made(target).items() if name.endswith(".sh"))
    yield from ((path.name, path.read_text()) for path in sorted(resources.folder("packer").glob("*.sh")))


SCRIPTS = list(scripts())


@pytest.mark.parametrize(("name", "text"), SCRIPTS, ids=[name for name, _ in SCRIPTS])
def test_shells_and_shellcheck_take_the_scripts(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "script.sh"
    path.write_text(text)
    process.run(["sh", "-n", path], timeout_s=BOUND_S)
    if process.which("shellcheck") is None:
        missing("shellcheck", "shellcheck is not installed (scripts/system)")
    process.run(["shellcheck", path], timeout_s=BOUND_S)


def test_shellcheck_refuses_a_broken_script(tmp_path: Path) -> None:
    if process.which("shellcheck") is None:
        missing("shellcheck", "shellcheck is not installed (scripts/system)")
    path = tmp_path / "script.sh"
    path.write_text(made("gke-secondary")[".gke.sh"].replace('--project="$PROJECT"', "--project=$PROJECTS"))
    assert process.run(["shellcheck", path], check=False, timeout_s=BOUND_S).returncode


FAKE = """#!/bin/sh
# A border that cannot be crossed here. Notes its arguments, one call a line, and answers what the script asks for.
{ printf '%s' "$(basename "$0")"; printf '\\t%s' "$@"; echo; } >> "$CALLS"
case "$(basename "$0") $*" in
  gcloud*"images describe"*) exit "${DESCRIBE:-1}" ;;
  az*grant-access*) echo "https://example.com/disk?sig=secret" ;;
  az*"snapshot create"*) echo "/subscriptions/0/snapshots/llama" ;;
  azcopy*) exit "${AZCOPY:-0}" ;;
esac
"""


def play(tmp_path: Path, script: str, **environ: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """The script with stand-ins for the clouds' programs: how it ended, and what it called."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir(exist_ok=True)
    for name in ("gcloud", "az", "azcopy"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    path = tmp_path / "script.sh"
    path.write_text(script)
    calls.write_text("")
    env = {"PATH": f"{programs}:/usr/bin:/bin", "CALLS": str(calls), **environ}
    done = subprocess.run(["sh", path], env=env, capture_output=True, text=True, timeout=BOUND_S, check=False)
    return done, [line.split("\t") for line in calls.read_text().splitlines()]


def test_gke_gets_an_image_once_and_a_pool_that_uses_it(tmp_path: Path) -> None:
    script = made("gke-secondary")[".gke.sh"]
    here = {"PROJECT": "p", "LOCATION": "l", "BUCKET": "b", "CLUSTER_NAME": "c"}
    done, calls = play(tmp_path, script, **here)
    assert done.returncode == 0, done.stderr
    assert [" ".join(call[:4]) for call in calls] == [
        "gcloud compute images describe", f"gcloud storage cp {tmp_path}/data.img.tar.gz", "gcloud compute images create",
        "gcloud storage rm gs://b/llama-c0c0c0c0c0c0.tar.gz", "gcloud container node-pools create",
    ]  # fmt: skip
    assert "--source-uri=gs://b/llama-c0c0c0c0c0c0.tar.gz" in calls[2]
    disk = "--secondary-boot-disk=disk-image=projects/p/global/images/llama-c0c0c0c0c0c0,mode=CONTAINER_IMAGE_CACHE"
    assert {disk, "--enable-image-streaming", "--cluster=c"} <= set(calls[4])
    _, calls = play(tmp_path, script, DESCRIBE="0", **here)
    assert [call[2] for call in calls] == ["images", "node-pools"]  # it is there, so nothing is uploaded
    done, calls = play(tmp_path, script, LOCATION="l")
    assert (done.returncode != 0, calls) == (True, [])
    assert "PROJECT: the project of the image" in done.stderr


def test_with_an_id_gke_gets_the_pool_alone(tmp_path: Path) -> None:
    script = made("gke-secondary", snapshot_id=IDS["gke-secondary"], cluster="prod")[".gke.sh"]
    done, calls = play(tmp_path, script, PROJECT="p", LOCATION="l")
    assert done.returncode == 0, done.stderr
    assert len(calls) == 1
    assert f"--secondary-boot-disk=disk-image={IDS['gke-secondary']},mode=CONTAINER_IMAGE_CACHE" in calls[0]
    assert "--cluster=prod" in calls[0]


@pytest.mark.parametrize(
    ("name", "image"),
    [("llama", "llama-"), ("Llama_3.1", "llama-3-1-"), ("3b", "d3b-"), ("a" * 80, "a" * 48 + "-"), ("..", "disk-")],
)
def test_names_of_images_are_compute_engines(name: str, image: str) -> None:
    found = gke.image_name(dataclasses.replace(ref("gke-secondary"), name=name))
    assert found == image + "c0" * 6
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", found)


def test_azure_gets_the_disk_and_the_address_is_taken_back(tmp_path: Path) -> None:
    script = made("azure-data")[".azure.sh"]
    vhd = tmp_path / "data.img.vhd"
    vhd.write_bytes(bytes((1 << 20) + 512))
    here = {"RESOURCE_GROUP": "g", "LOCATION": "l"}
    done, calls = play(tmp_path, script, **here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "/subscriptions/0/snapshots/llama"
    assert [" ".join(call[:3]) for call in calls] == [
        "az disk create", "az disk grant-access", f"azcopy copy {vhd}", "az disk revoke-access", "az snapshot create",
    ]  # fmt: skip
    assert calls[0][calls[0].index("--upload-size-bytes") + 1] == str((1 << 20) + 512)
    done, calls = play(tmp_path, script, AZCOPY="1", **here)
    assert done.returncode != 0
    assert calls[-1][:3] == ["az", "disk", "revoke-access"]  # and no snapshot of half a disk
    vhd.write_bytes(bytes(1 << 20))
    done, calls = play(tmp_path, script, **here)
    assert (done.returncode, calls) == (1, [])
    assert "expected whole MiB and 512 bytes" in done.stderr
