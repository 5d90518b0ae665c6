"""The units of a baked disk, followed by hand: containerd finds the images where a node looks for them."""

from __future__ import annotations

import configparser
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.config.spec import Bake
from builder.node import containerd, disk, specs
from builder.node.bake import BakePlan, DataVolume, bake
from builder.node.inputs import ImageInput, WeightsInput
from builder.node.specs import user_data
from builder.node.targets import CONTAINERD, FS_LABEL, MODELS, target
from tests import disks, oci
from tests.bounds import BOUND_S

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_stays")]
PAUSE = "localhost/kubernetes/pause:latest"

# A namespace of its own, so that nothing of this machine is covered; a file system of its own in place of /var/lib.
BOOT = """
set -eu
mount -t tmpfs tmpfs /var/lib
{mounts}
containerd --config {config} > {log} 2>&1 &
child=$!
trap 'kill $child; wait $child || true' EXIT
until ctr version > /dev/null 2>&1; do kill -0 $child; sleep 0.05; done
{after}
ctr -n k8s.io images ls
echo ---
ctr -n k8s.io images check
echo ---
find /var/lib/builder/models -type f | head -1
"""


@pytest.fixture(scope="module")
def raw(loop_root: None, layout: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataVolume]:
    out = tmp_path_factory.mktemp("raw") / "data.img"
    plan = BakePlan(out, (ImageInput(layout),), (WeightsInput(folder=weights),), size=disks.SIZE, target=target("raw"))
    yield bake(plan)
    out.unlink()


def units_of(volume: DataVolume) -> dict[str, str]:
    return user_data.unit_files(specs.snapshot_ref(volume.to_json(), Bake(), name="tiny"))


def mounts(units: dict[str, str], device: Path) -> Iterator[str]:
    """What systemd would do, in the order of the units' Requires."""
    for name in user_data.MOUNTS:
        unit = configparser.RawConfigParser(strict=False)
        unit.read_string(units[name])
        what, where = unit["Mount"]["What"], unit["Mount"]["Where"]
        assert name == where.strip("/").replace("/", "-") + ".mount"
        what = str(device) if what == f"/dev/disk/by-label/{FS_LABEL}" else what
        guard = unit["Unit"].get("ConditionPathIsDirectory")
        kind = "" if unit["Mount"]["Type"] == "none" else f"-t {unit['Mount']['Type']}"
        line = f"mkdir -p {where} && mount {kind} -o {unit['Mount']['Options']} {what} {where}"
        yield f"if test -d {guard}; then {line}; fi" if guard else line


def boot(volume: DataVolume, tmp_path: Path, *, units: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The mounts, containerd with its default root, what the drop-in runs after it; then what it lists and what it checks."""
    oci.write_layout(tmp_path / "pause", name=PAUSE)
    archive = oci.tar_layout(tmp_path / "pause", tmp_path / "pause.tar")
    posts = [line.removeprefix("ExecStartPost=-") for line in units[user_data.DROP_IN].splitlines() if "ExecStartPost" in line]
    assert len(posts) == 2
    config, socket = tmp_path / "config.toml", tmp_path / "s"
    config.write_text(containerd.config(Path("/var/lib/containerd"), tmp_path / "state", socket, cri=False))
    with disk.attached(volume.path, target("raw").extent(volume.size)) as device:
        label = subprocess.run(
            ["blkid", "-p", "-s", "LABEL", "-o", "value", device], capture_output=True, text=True, check=True
        )
        assert label.stdout.strip() == FS_LABEL
        script = BOOT.format(
            mounts="\n".join(mounts(units, device)),
            config=config,
            log=tmp_path / "log",
            after="\n".join(posts).replace("/etc/eks/pause.tar", str(archive)),
        )
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script], capture_output=True, text=True,
            timeout=BOUND_S, check=False, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CONTAINERD_ADDRESS": str(socket)},
        )  # fmt: skip


def test_containerd_has_the_images_and_the_runtime_the_weights(raw: DataVolume, tmp_path: Path) -> None:
    done = boot(raw, tmp_path, units=units_of(raw))
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    listed, checked, found = done.stdout.split("---\n")[0:3]
    listed = listed[listed.index("REF") :]
    (row,) = [line for line in listed.splitlines() if line.startswith(f"{disks.NAME} ")]
    assert "io.cri-containerd.pinned=pinned" in row
    (pause,) = [line for line in listed.splitlines() if line.startswith(f"{PAUSE} ")]
    assert "io.cri-containerd.image=managed,io.cri-containerd.pinned=pinned" in pause
    assert [line for line in checked.splitlines() if line.startswith(f"{disks.NAME} ") and line.endswith("true")]
    assert found.startswith(f"/{MODELS}/")


def test_without_the_mount_there_would_be_nothing(raw: DataVolume, tmp_path: Path) -> None:
    units = units_of(raw)
    name = user_data.MOUNTS[1]
    assert f"/{CONTAINERD}\n" in units[name]
    done = boot(raw, tmp_path, units=units | {name: units[name].replace(f"volume/{CONTAINERD}", "volume/opt")})
    assert disks.NAME not in done.stdout
