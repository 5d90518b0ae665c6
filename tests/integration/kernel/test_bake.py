"""A disk baked and verified on real parts: loop devices, XFS and ext4, containerd, runc."""

from __future__ import annotations

import json
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

from builder.errors import BuilderError, CapabilityError, ClaimError, ConfigError, IntegrityError
from builder.node import containerd, disk, gpt, volume, workplace
from builder.node.bake import BakePlan, DataVolume, bake
from builder.node.blocks import BLOCK
from builder.node.inputs import ImageInput, WeightsInput
from builder.node.targets import BOTTLEROCKET, CACHE_TREES, CONTAINERD, MODELS
from builder.node.verify import VerifyPlan, verify
from builder.transfer.restore import restore
from builder.transfer.source import FolderSource
from tests import oci
from tests.leftovers import leftovers
from tests.unit.transfer.build import Model, random_model

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root")]
SIZE = 1 << 30
RUN = ("/bin/sh", "-c", "id -u; cat /opt/app/data.txt")
NAME = "registry.example.com/llm/tiny:v1"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oci") / "layout"
    oci.write_layout(folder)
    return folder


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(files=2, size=700_000, chunk_bytes=100_000)


@pytest.fixture(scope="module")
def weights(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A restored folder."""
    root = tmp_path_factory.mktemp("weights")
    restore(model.manifest, FolderSource(model.store(root / "store")), root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def baked(loop_root: None, layout: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> DataVolume:
    """One disk for all who only read it, or copy it to damage the copy."""
    out = tmp_path_factory.mktemp("disk") / "data.img"
    plan = BakePlan(out, images=(ImageInput(layout),), weights=(WeightsInput(folder=weights),), size=SIZE)
    return bake(plan)


@pytest.fixture(autouse=True)
def _nothing_stays(loop_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    assert leftovers(tmp_path_factory.getbasetemp()) == []


def test_the_disk_starts_its_image_by_digest_with_no_pull(baked: DataVolume, model: Model) -> None:
    before = baked.path.stat()
    report = verify(VerifyPlan(baked.path, run=RUN))
    (run,) = report.runs
    assert run.output == "10001\nsecond layer\n"  # as the image's user, out of the second layer
    assert run.reference == f"registry.example.com/llm/tiny@{baked.images[0]['digest']}"
    assert set(report.checks) >= {"partition table", "SELinux labels", "unpacked layers", "weights", "pinned and managed"}
    assert baked.weights.keys() == {model.manifest.digest}
    assert report.free > 0.9
    after = baked.path.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)  # only a copy was written


def test_the_disk_holds_what_its_record_says(baked: DataVolume, weights: Path) -> None:
    assert baked.path.stat().st_size == SIZE
    assert baked.path.stat().st_blocks * 512 < 128 << 20  # sparse; the journal is 64 MiB of zeros
    assert 0 < baked.blocks < 64 << 20 >> 19
    assert baked.nonzero_bytes == baked.blocks * BLOCK
    with opened(baked.path) as root:
        record = json.loads((root / volume.RECORD).read_text())
        assert record["weights"] == baked.weights
        assert [row["reference"] for row in record["images"]] == [NAME]
        folder = root / CONTAINERD
        assert {p.name for p in folder.iterdir()} == set(CACHE_TREES)  # no identity of this machine
        (models,) = (root / MODELS).iterdir()
        names = {p.relative_to(weights).as_posix() for p in weights.rglob("*") if p.is_file()}
        for path in volume.walk(models):
            found = path.lstat()
            assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, 0, 0o755 if path.is_dir() else 0o644)
            names.discard(path.relative_to(models).as_posix())
        assert not names
        labelled = os.getxattr(folder / CACHE_TREES[2] / "snapshots", "security.selinux")
        assert labelled == b"system_u:object_r:cache_t:s0"


@pytest.mark.parametrize("loop", [True, False])
def test_layers_that_replace_and_hide_keep_their_marks(tmp_path: Path, loop: bool) -> None:
    """A whiteout and an opaque folder become what overlayfs reads: a 0/0 device and trusted.overlay.opaque."""
    folder = tmp_path / "layout"
    oci.write_layout(folder, whiteout=True)
    made = bake(BakePlan(tmp_path / "o.img", images=(ImageInput(folder),), size=SIZE, loop=loop))
    report = verify(VerifyPlan(made.path, run=("/bin/sh", "-c", "test ! -e /bin/true; test ! -e /opt/base/gone; echo ok")))
    assert report.runs[0].output == "ok\n"


def test_without_loop_devices_the_disk_is_ext4_and_as_good(layout: Path, weights: Path, tmp_path: Path) -> None:
    plan = BakePlan(
        tmp_path / "e.img", images=(ImageInput(layout),), weights=(WeightsInput(folder=weights),), size=SIZE, loop=False
    )
    made = bake(plan)
    assert made.filesystem == "ext4"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.img"]  # no tree stays
    assert verify(VerifyPlan(made.path, run=RUN)).runs[0].output == "10001\nsecond layer\n"


def test_an_archive_two_images_and_weights_from_a_store(layout: Path, model: Model, tmp_path: Path) -> None:
    oci.write_layout(tmp_path / "other", name="", extra=b"other\n")
    images = (ImageInput(oci.tar_layout(layout, tmp_path / "a.tar")), ImageInput(tmp_path / "other", "acme/other:v2"))
    store = model.store(tmp_path / "store")
    plan = BakePlan(tmp_path / "t.img", images=images, weights=(WeightsInput(store=str(store)),), size=SIZE)
    made = bake(plan)
    report = verify(VerifyPlan(made.path, run=RUN))
    assert [(r.reference.split("@")[0], r.output.split()[-1]) for r in report.runs] == [
        ("registry.example.com/llm/tiny", "layer"),
        ("docker.io/acme/other", "other"),
    ]
    assert list(made.weights) == [model.manifest.digest]


def test_the_entry_point_gets_the_arguments(tmp_path: Path) -> None:
    oci.write_layout(tmp_path / "layout", entrypoint=("/bin/cat", "/opt/app/data.txt"))
    made = bake(BakePlan(tmp_path / "o.img", images=(ImageInput(tmp_path / "layout"),), size=SIZE))
    (run,) = verify(VerifyPlan(made.path, run=("/opt/base/gone",))).runs
    assert run.output == "second layer\ng"
    assert run.arguments == ("/bin/cat", "/opt/app/data.txt", "/opt/base/gone")
    with pytest.raises(ClaimError, match="say what to run with --run"):  # a server would not end
        verify(VerifyPlan(made.path))


def test_an_image_of_ours_that_runs_as_root_breaks_its_claim(tmp_path: Path) -> None:
    oci.write_layout(tmp_path / "layout", user="0", entrypoint=("/bin/true", "-m", "builder.runtime"))
    made = bake(BakePlan(tmp_path / "o.img", images=(ImageInput(tmp_path / "layout"),), size=SIZE))
    with pytest.raises(ClaimError, match="runs as 0, expected another user than root"):
        verify(VerifyPlan(made.path))


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The file system of the disk, mounted."""
    part = gpt.read(path).partitions[0]
    with workplace.workplace(path) as place, disk.attached(path, part) as device, disk.mounted(device, place.mount) as root:
        yield root


def _snapshot(root: Path) -> Path:
    return root / CONTAINERD / CACHE_TREES[2] / "snapshots"


def _remove_layer(root: Path) -> None:
    shutil.rmtree(_snapshot(root) / "2" / "fs")


def _change_file(root: Path) -> None:
    path = next(_snapshot(root).rglob("data.txt"))
    body = path.read_bytes()
    path.write_bytes(b"S" + body[1:])
    assert path.stat().st_size == len(body)


def _change_mode(root: Path) -> None:
    next(_snapshot(root).rglob("data.txt")).chmod(0o4755)


def _remove_label(root: Path) -> None:
    os.removexattr(next(_snapshot(root).rglob("data.txt")), "security.selinux", follow_symlinks=False)


def _flip_weight(root: Path) -> None:
    path = next((root / MODELS).rglob("part-1.safetensors"))
    with path.open("r+b") as out:
        out.seek(123_456)
        byte = out.read(1)[0]
        out.seek(123_456)
        out.write(bytes([byte ^ 1]))


def _flip_config(root: Path) -> None:
    blobs = root / CONTAINERD / CACHE_TREES[0] / "blobs" / "sha256"
    path = min(blobs.iterdir(), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1] + b" ")


def _fill(root: Path) -> None:
    free = shutil.disk_usage(root).free
    with (root / "var" / "junk").open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, free - (40 << 20))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_remove_layer, "unpacked layers: .*snapshots/2/fs is missing"),
        (_change_file, "unpacked layers: .*snapshots/2/fs is [0-9a-f]{64}, expected"),
        (_change_mode, "unpacked layers: "),
        (_remove_label, r"SELinux labels: .*data.txt: not system_u:object_r:cache_t:s0"),
        (_flip_weight, "weights: sha256:[0-9a-f]{64}: .*part-1.safetensors"),
        (_flip_config, "content: sha256:[0-9a-f]{64} has sha256"),
        (_fill, "free space: .* expected 15%"),
        (lambda root: (root / volume.RECORD).unlink(), "build record: .*bake.json"),
        (lambda root: (root / CONTAINERD / "junk").mkdir(), "var/lib/containerd/junk: does not belong"),
    ],
)
def test_verify_finds_damage(baked: DataVolume, tmp_path: Path, damage: object, says: str) -> None:
    path = copy_of(baked.path, tmp_path)
    with opened(path) as root:
        damage(root)  # type: ignore[operator]
    with pytest.raises(ClaimError, match=says) as caught:
        verify(VerifyPlan(path, run=RUN))
    assert caught.value.where["findings"]


@pytest.mark.parametrize(
    ("ctr", "says"),
    [
        (["images", "label", NAME, "io.cri-containerd.pinned="], "pinned is None, expected 'pinned'"),
        (["images", "label", NAME, "io.cri-containerd.image="], "image is None, expected 'managed'"),
        (["images", "rm", NAME], f"{NAME} is absent"),
        (["images", "rm", "DIGEST"], "@sha256:[0-9a-f]{64} is absent"),
    ],
)
def test_verify_finds_what_kubelet_would_not(baked: DataVolume, tmp_path: Path, ctr: list[str], says: str) -> None:
    path = copy_of(baked.path, tmp_path)
    part = gpt.read(path).partitions[0]
    by_digest = f"{NAME.rsplit(':', 1)[0]}@{baked.images[0]['digest']}"
    with workplace.workplace(path) as place, disk.attached(path, part) as device, disk.mounted(device, place.mount) as root:
        with containerd.containerd(root / CONTAINERD, place.folder) as daemon:
            daemon.ctr(*(by_digest if word == "DIGEST" else word for word in ctr))
        volume.keep_only_caches(root)
        volume.label_all(root, BOTTLEROCKET)
    with pytest.raises(ClaimError, match=says):
        verify(VerifyPlan(path, run=RUN))


def test_verify_finds_a_container_that_fails(baked: DataVolume) -> None:
    with pytest.raises(ClaimError, match=r"start registry.example.com/llm/tiny:v1: exit status 3"):
        verify(VerifyPlan(baked.path, run=("/bin/sh", "-c", "exit 3")))


def test_a_container_that_hangs_is_ended(baked: DataVolume) -> None:
    with pytest.raises(ClaimError, match="no answer within 1 s"):
        verify(VerifyPlan(baked.path, run=("/bin/sh", "-c", "sleep 99"), run_s=1.0))


def test_verify_names_a_wrong_partition_label(baked: DataVolume, tmp_path: Path) -> None:
    path = copy_of(baked.path, tmp_path)
    table = gpt.read(path)
    part = table.partitions[0]
    gpt.write(path, table.disk_guid, gpt.Partition(part.type_guid, part.guid, part.first, part.last, ""))
    with pytest.raises(ClaimError, match="partition table: label is '', expected 'BOTTLEROCKET-DATA'"):
        verify(VerifyPlan(path, run=RUN))


def test_a_blob_that_differs_from_its_digest_is_not_baked(tmp_path: Path) -> None:
    folder = tmp_path / "layout"
    oci.write_layout(folder)
    layer = max((folder / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    body = bytearray(layer.read_bytes())
    body[len(body) // 2] ^= 1
    layer.write_bytes(body)
    with pytest.raises(BuilderError, match=layer.name):
        bake(BakePlan(tmp_path / "o.img", images=(ImageInput(folder),), size=SIZE))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layout"]


def test_damaged_weights_are_not_baked(layout: Path, weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(weights, copy)
    (copy / "part-0.safetensors").write_bytes(b"\0" * 700_000)
    with pytest.raises(IntegrityError, match=r"part-0.safetensors"):
        bake(BakePlan(tmp_path / "o.img", weights=(WeightsInput(folder=copy),), size=SIZE))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_an_existing_file_is_kept_unless_forced(layout: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.img"
    out.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="already there"):
        bake(BakePlan(out, images=(ImageInput(layout),), size=SIZE))
    assert out.read_bytes() == b"mine"
    bake(BakePlan(out, images=(ImageInput(layout),), size=SIZE, force=True))
    assert out.stat().st_size == SIZE


def test_two_bakes_of_one_file_exclude_each_other(layout: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.img"
    with (
        workplace.workplace(out.with_name("o.img.partial")),
        pytest.raises(CapabilityError, match="another process works on it"),
    ):
        bake(BakePlan(out, images=(ImageInput(layout),), size=SIZE))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_killed_bake_leaves_nothing_for_long(layout: Path, tmp_path: Path, number: signal.Signals, status: int) -> None:
    """SIGTERM and Ctrl-C clean up on the way out; what SIGKILL leaves is removed by the next run, and reported."""
    out = tmp_path / "k.img"
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(out), str(layout)], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 30
    while not (tmp_path / "imported").exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(leftovers(tmp_path)) >= 3  # a loop device, a mount, a containerd
    child.send_signal(number)
    assert child.wait(30) == status
    if number == signal.SIGKILL:
        removed = workplace.sweep()
        assert any(text.startswith("loop device") for text in removed)
        assert any(text.startswith("mount") for text in removed)
        assert f"file {out}.partial" in removed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["imported"]
    assert leftovers(tmp_path) == []


def test_a_killed_check_leaves_no_container_for_long(baked: DataVolume, tmp_path: Path) -> None:
    """A container outlives its shim and containerd; the next run finds and ends it, and forgets it in runc's records."""
    path = copy_of(baked.path, tmp_path)
    child = subprocess.Popen([sys.executable, "-c", HANGING, str(path)], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 30
    while not (runs := [line for line in _arguments() if line.endswith("sleep 98.7")]):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(runs) == 1
    child.kill()
    child.wait(30)
    removed = workplace.sweep()
    assert f"file {path}.check" in removed
    assert not [line for line in _arguments() if line.endswith("sleep 98.7")]
    assert not list(workplace.RUNC_STATE.glob("builder-*"))
    assert leftovers(tmp_path) == []


def _arguments() -> list[str]:
    return subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines()


HANGING = """
import sys
from pathlib import Path
from builder.node.targets import BOTTLEROCKET, CACHE_TREES, CONTAINERD, MODELS
from builder.node.verify import VerifyPlan, verify
verify(VerifyPlan(Path(sys.argv[1]), run=("/bin/sleep", "98.7")))
"""
# A bake that stops after the import, with everything attached.
SLOW = """
import sys, time
from pathlib import Path
from builder.node import bake, containerd
from builder.node.inputs import ImageInput
out = Path(sys.argv[1])
def wait(self):
    (out.parent / "imported").touch()
    time.sleep(60)
containerd.Containerd.collect = wait
try:
    bake.bake(bake.BakePlan(out, images=(ImageInput(Path(sys.argv[2])),), size=1 << 30))
except KeyboardInterrupt:
    sys.exit(130)
"""


def copy_of(path: Path, folder: Path) -> Path:
    """A sparse copy to damage."""
    subprocess.run(["cp", "--sparse=always", path, folder / "copy.img"], check=True)
    return folder / "copy.img"
