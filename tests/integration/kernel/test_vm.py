"""Baked disks, booted in QEMU under software emulation. One boot always; the others by `pytest -m vm`."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builder.errors import BuilderError, CapabilityError, ClaimError
from builder.node import disk, gpt, targets, volume, workplace
from builder.node.bake import BakePlan, DataVolume, bake
from builder.node.inputs import ImageInput, WeightsInput
from builder.node.vm import kernel, userland
from builder.node.vm.boot import boot
from builder.node.vm.plan import VmCommand, VmPlan
from builder.transfer.restore import restore
from builder.transfer.source import FolderSource
from tests import oci
from tests.conftest import missing
from tests.unit.transfer.build import random_model

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root", "machine")]
SIZE = 1 << 30
# The user, a file of the second layer, the network cards, how the weights are mounted, and that they can be read.
SCRIPT = """
id -u; cat /opt/app/data.txt
while read -r card rest; do case $card in *:*) echo "card $card" ;; esac; done </proc/net/dev
while read -r device at type options rest; do
  case $at in /var/lib/builder/models) echo "weights ${options%%,*}" ;; esac
done </proc/mounts
for model in /var/lib/builder/models/*; do
  cat "$model/part-0.safetensors" >/dev/null && echo "weights are there"
done
"""


@pytest.fixture(scope="module")
def machine() -> None:
    """What a boot needs."""
    try:
        kernel.find()
        userland.busybox()
        if shutil.which("qemu-system-x86_64") is None:
            raise CapabilityError("qemu-system-x86_64: program not found")
    except CapabilityError as exc:
        missing("vm", exc.message)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oci") / "layout"
    oci.write_layout(folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A restored folder."""
    root = tmp_path_factory.mktemp("weights")
    model = random_model(files=2, size=70_000, chunk_bytes=50_000)
    restore(model.manifest, FolderSource(model.store(root / "store")), root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def baked(loop_root: None, machine: None, layout: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> DataVolume:
    out = tmp_path_factory.mktemp("disk") / "data.img"
    return bake(BakePlan(out, images=(ImageInput(layout),), weights=(WeightsInput(folder=weights),), size=SIZE))


@pytest.fixture
def free(tmp_path: Path) -> Iterator[Path]:
    """A scratch folder that is empty again afterwards, and no machine left that works on it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []
    assert machines(folder) == []


def machines(folder: Path) -> list[str]:
    """Command lines of QEMU that name a file in the folder."""
    lines = subprocess.check_output(["ps", "-ww", "-eo", "args"], text=True).splitlines()
    return [line for line in lines if "qemu" in line and f"{folder}/" in line]


def command(volume_: DataVolume, script: str) -> VmCommand:
    name = f"{volume_.images[0]['reference'].rsplit(':', 1)[0]}@{volume_.images[0]['digest']}"
    return VmCommand(name, ("/bin/sh", "-c", script))


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def test_the_disk_boots_and_starts_its_image_with_no_network(baked: DataVolume, free: Path, tmp_path: Path) -> None:
    before = (digest(baked.path), baked.path.stat().st_mtime_ns)
    console = tmp_path / "console.log"
    seen = boot(VmPlan(baked.path, (command(baked, SCRIPT),), scratch=free, console=console))
    (run,) = seen.runs
    assert run.output.splitlines() == ["10001", "second layer", "card lo:", "weights ro", "weights are there"]
    assert (run.user, run.exit) == ("10001:0", 0)
    assert (seen.device, seen.filesystem) == ("PARTLABEL=BOTTLEROCKET-DATA", "xfs")
    assert {baked.images[0]["reference"], run.reference} == set(seen.images)
    assert set(seen.seconds) == {"kernel", "mount", "containerd", "container", "total"}
    assert "builder: containerd" in console.read_text()
    assert before == (digest(baked.path), baked.path.stat().st_mtime_ns)


@pytest.mark.vm
def test_ext4_made_without_loop_devices_boots(layout: Path, free: Path, tmp_path: Path) -> None:
    made = bake(BakePlan(tmp_path / "e.img", images=(ImageInput(layout),), size=SIZE, loop=False))
    seen = boot(VmPlan(made.path, (command(made, "id -u"),), scratch=free))
    assert (seen.filesystem, seen.runs[0].output) == ("ext4", "10001\n")


@pytest.mark.vm
def test_a_file_system_on_the_whole_disk_is_found_by_its_label(layout: Path, weights: Path, free: Path, tmp_path: Path) -> None:
    target = targets.target("al2023-volume")
    plan = BakePlan(
        tmp_path / "a.img", images=(ImageInput(layout),), weights=(WeightsInput(folder=weights),), size=SIZE, target=target
    )
    made = bake(plan)
    seen = boot(VmPlan(made.path, (command(made, SCRIPT),), target=target.name, scratch=free))
    assert seen.device == "LABEL=BUILDER-DATA"
    assert seen.runs[0].output.splitlines()[-2:] == ["weights ro", "weights are there"]


@pytest.mark.vm
def test_a_volume_with_another_label_is_not_found(baked: DataVolume, free: Path, tmp_path: Path) -> None:
    """Also by a target that wants another kind of label: the machine says what it saw instead."""
    path = copy_of(baked.path, tmp_path)
    table = gpt.read(path)
    part = table.partitions[0]
    gpt.write(path, table.disk_guid, gpt.Partition(part.type_guid, part.guid, part.first, part.last, "OTHER"))
    with pytest.raises(ClaimError, match="no PARTLABEL=BOTTLEROCKET-DATA") as caught:
        boot(VmPlan(path, (command(baked, "id -u"),), scratch=free))
    assert "/dev/vda1: PARTLABEL='OTHER' TYPE='xfs' LABEL=''" in caught.value.message
    with pytest.raises(ClaimError, match="no LABEL=BUILDER-DATA"):
        boot(VmPlan(baked.path, (command(baked, "id -u"),), target="al2023-volume", scratch=free))


@pytest.mark.vm
def test_what_fails_in_the_machine_is_told(baked: DataVolume, free: Path, tmp_path: Path) -> None:
    absent = VmCommand("registry.example.com/llm/other@sha256:" + "0" * 64, ("/bin/true",))
    asked = (command(baked, "echo no such model >&2; exit 3"), command(baked, "sleep 600"), absent)
    with pytest.raises(ClaimError) as caught:
        boot(VmPlan(baked.path, asked, run_s=60.0, scratch=free, console=tmp_path / "console.log"))
    said = caught.value.where["findings"]
    assert [finding for finding in said if finding.endswith("exit status 3\n    no such model")]
    assert [finding for finding in said if "no end within 60 s" in finding]
    assert f"image {absent.reference}: absent" in said
    assert "builder: container" in (tmp_path / "console.log").read_text()


@pytest.mark.vm
def test_a_damaged_file_system_is_not_mounted(baked: DataVolume, free: Path, tmp_path: Path) -> None:
    path = copy_of(baked.path, tmp_path)
    with path.open("r+b") as raw:
        raw.seek(gpt.read(path).partitions[0].offset + 4)
        raw.write(bytes(100))  # of the superblock, behind its magic
    with pytest.raises(ClaimError, match="mount: /dev/vda1 on /local: "):
        boot(VmPlan(path, (command(baked, "id -u"),), scratch=free))


@pytest.mark.vm
def test_a_disk_without_containerd_content_is_refused(baked: DataVolume, free: Path, tmp_path: Path) -> None:
    path = copy_of(baked.path, tmp_path)
    with mounted(path, tmp_path) as root:
        shutil.rmtree(root / targets.CONTAINERD / targets.CACHE_TREES[1])
    with pytest.raises(ClaimError, match=r"image registry.example.com/llm/tiny@sha256:\w+: absent"):
        boot(VmPlan(path, (command(baked, "id -u"),), scratch=free))


def test_a_machine_that_is_not_done_in_time_is_ended(baked: DataVolume, free: Path) -> None:
    with pytest.raises(CapabilityError, match="not done after 1 s; it was at: kernel"):
        boot(VmPlan(baked.path, (command(baked, "id -u"),), timeout_s=1.0, scratch=free))


@pytest.mark.vm
def test_a_kernel_that_panics_is_told(baked: DataVolume, free: Path) -> None:
    """There is no room for the initial RAM disk."""
    with pytest.raises(BuilderError, match="did not come to its first process") as caught:
        boot(VmPlan(baked.path, (command(baked, "id -u"),), memory_mib=128, scratch=free))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.vm), (signal.SIGKILL, -9)],
)
def test_a_killed_boot_leaves_nothing(baked: DataVolume, free: Path, number: signal.Signals, status: int) -> None:
    """After SIGKILL the machine is gone at once, and its files with the next clean-up."""
    child = subprocess.Popen([sys.executable, "-c", BOOT, baked.path, free])
    deadline = time.monotonic() + 120
    while not machines(free):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(number)
    assert child.wait(120) == status
    while machines(free) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert machines(free) == []
    if number == signal.SIGKILL:
        assert len(list(free.iterdir())) <= 1  # another test's clean-up may have been here first
        workplace.sweep()
        while list(free.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert baked.path.is_file()


BOOT = """
import signal, sys
from pathlib import Path
from builder.node.vm.boot import boot
from builder.node.vm.plan import VmPlan
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
try:
    boot(VmPlan(Path(sys.argv[1]), scratch=Path(sys.argv[2])))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.vm
@pytest.mark.parametrize("labelled", [True, False])
def test_labels_keep_a_root_container_from_changing_the_cache(
    baked: DataVolume, free: Path, tmp_path: Path, labelled: bool
) -> None:
    path = copy_of(baked.path, tmp_path)
    if not labelled:
        with mounted(path, tmp_path) as root:
            for entry in volume.walk(root):
                if volume.LABEL_KEY in os.listxattr(entry, follow_symlinks=False):
                    os.removexattr(entry, volume.LABEL_KEY, follow_symlinks=False)
    plan = VmPlan(path, (command(baked, "cat /proc/self/attr/current"),), selinux=True, scratch=free)
    if labelled:
        seen = boot(plan)
        assert seen.runs[0].output.rstrip("\0\n") == "system_u:system_r:container_t:s0:c1,c2"
        assert (seen.selinux["layers"], seen.selinux["models"]) == ("read denied", "read denied")
        assert "tcontext=system_u:object_r:cache_t:s0" in seen.selinux["denial"]
    else:
        with pytest.raises(ClaimError) as caught:
            boot(plan)
        assert [finding.split(":")[1].strip() for finding in caught.value.where["findings"]] == ["layers", "models"]
        assert "read written, expected read denied" in caught.value.message


def copy_of(path: Path, folder: Path) -> Path:
    copy = folder / "copy.img"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", path, copy], check=True)
    return copy


@contextmanager
def mounted(path: Path, folder: Path) -> Iterator[Path]:
    """The file system of the disk, mounted for changes."""
    point = folder / "point"
    point.mkdir()
    with disk.attached(path, gpt.read(path).partitions[0]) as device, disk.mounted(device, point):
        yield point
