"""A disk baked and verified on real parts: loop devices, XFS and ext4, containerd, runc."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError
from builder.node import volume, workplace
from builder.node.bake import BakePlan, DataVolume, bake
from builder.node.blocks import BLOCK
from builder.node.inputs import ImageInput, WeightsInput
from builder.node.targets import CACHE_TREES, CONTAINERD, MODELS
from builder.node.verify import VerifyPlan, verify
from tests import oci
from tests.bounds import BOUND_S
from tests.disks import NAME, RUN, SIZE, opened
from tests.leftovers import leftovers
from tests.unit.transfer.build import Model

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_stays")]


def test_the_disk_starts_its_image_by_digest_with_no_pull(baked: DataVolume, model: Model) -> None:
    before = baked.path.stat()
    report = verify(VerifyPlan(baked.path, run=RUN))
    (run,) = report.runs
    assert run.output == "10001\nsecond layer\n"  # as the image's user, out of the second layer
    assert run.reference == f"registry.example.com/llm/tiny@{baked.images[0]['digest']}"
    assert set(report.checks) >= {"partition table", "SELinux labels", "unpacked layers", "weights", "free space"}
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
    """Also in a folder whose name holds a space, and of a user whose files nobody else may read."""
    out = tmp_path / "my disks" / "e.img"
    out.parent.mkdir()
    plan = BakePlan(out, images=(ImageInput(layout),), weights=(WeightsInput(folder=weights),), size=SIZE, loop=False)
    before = os.umask(0o077)
    try:
        made = bake(plan)
    finally:
        assert os.umask(before) == 0o077
    assert made.filesystem == "ext4"
    assert sorted(p.name for p in out.parent.iterdir()) == ["e.img"]  # no tree stays
    assert out.stat().st_mode & 0o777 == 0o600
    with opened(out) as root:
        models = Path(MODELS)
        for path in (Path(), *reversed(models.parents), models, Path(volume.RECORD)):
            assert (root / path).stat().st_mode & 0o444 == 0o444, path
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


def test_the_same_weights_twice_are_refused(weights: Path, tmp_path: Path) -> None:
    twice = (WeightsInput(folder=weights),) * 2
    with pytest.raises(ConfigError, match="the same weights a second time"):
        bake(BakePlan(tmp_path / "o.img", weights=twice, size=SIZE))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_kept(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "o.img.tree").mkdir()
    (tmp_path / "o.img.tree" / "mine").touch()
    with pytest.raises(ConfigError, match=r"o\.img\.tree: already there"):
        bake(BakePlan(tmp_path / "o.img", images=(ImageInput(layout),), size=SIZE, loop=False))
    assert [p.name for p in tmp_path.rglob("*")] == ["o.img.tree", "mine"]


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


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_a_killed_bake_leaves_nothing_for_long(layout: Path, tmp_path: Path, number: signal.Signals, status: int) -> None:
    """Each signal that can be caught cleans up on the way out; what SIGKILL leaves is removed by the next run, and reported."""
    out = tmp_path / "k.img"
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(out), str(layout)], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + BOUND_S
    while not (tmp_path / "imported").exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(leftovers(tmp_path)) >= 3  # a loop device, a mount, a containerd
    child.send_signal(number)
    assert child.wait(BOUND_S) == status
    if number == signal.SIGKILL:
        removed = workplace.sweep()
        assert any(text.startswith("loop device") for text in removed)
        assert any(text.startswith("mount") for text in removed)
        assert f"file {out}.partial" in removed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["imported"]
    assert leftovers(tmp_path) == []


# A bake that stops after the import, with everything attached.
SLOW = """
import signal, sys, time
from pathlib import Path
from builder.node import bake, containerd
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and what nohup starts this one
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
