"""Each kind of node's disk, as that node finds it: read by the kernel, blkid, GNU tar, md5sum and QEMU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builder import process
from builder.errors import CapabilityError, ConfigError
from builder.node import blocks, gke, programs
from builder.node.bake import BakePlan, DataVolume, bake
from builder.node.inputs import ImageInput, WeightsInput
from builder.node.layout import host_platform
from builder.node.targets import CACHE_TREES, CONTAINERD, TARGETS
from builder.node.volume import RECORD
from builder.node.workplace import workplace
from tests import oci
from tests.leftovers import leftovers

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root")]
SIZE = 1 << 30
Bake = Callable[..., DataVolume]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oci") / "layout"
    oci.write_layout(folder)
    return folder


@pytest.fixture
def baking(layout: Path, tmp_path: Path) -> Iterator[Bake]:
    def make(target: str, **more: object) -> DataVolume:
        images = more.pop("images", (ImageInput(layout),))
        return bake(BakePlan(tmp_path / "d.img", images, size=SIZE, target=TARGETS[target], **more))  # type: ignore[arg-type]

    yield make
    assert leftovers(tmp_path) == []


@pytest.fixture(scope="module")
def plain(loop_root: None, layout: Path, tmp_path_factory: pytest.TempPathFactory) -> DataVolume:
    """A disk of the plainest kind, made as by default."""
    out = tmp_path_factory.mktemp("plain") / "p.img"
    return bake(BakePlan(out, (ImageInput(layout),), size=SIZE, target=TARGETS["raw"]))


@contextmanager
def mounted(volume: DataVolume) -> Iterator[Path]:
    """The whole disk as one file system, no partition table, read-only."""
    with workplace(volume.path) as place:
        subprocess.run(["mount", "-o", "loop,ro", volume.path, place.mount], check=True)
        yield place.mount


def blkid(path: Path) -> dict[str, str]:
    said = subprocess.run(["blkid", "--probe", "--output", "export", path], check=True, capture_output=True, text=True).stdout
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def label(path: Path) -> str:
    try:
        return os.getxattr(path, "security.selinux", follow_symlinks=False).decode()
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("target", "loop"), [("al2023-volume", True), ("azure-data", True), ("raw", True), ("al2023-volume", False)]
)
def test_a_volume_is_found_by_its_label(baking: Bake, target: str, loop: bool) -> None:
    made = baking(target, loop=loop)
    found = blkid(made.path)
    assert (found["LABEL"], found["TYPE"]) == ("BUILDER-DATA", "xfs" if loop else "ext4")
    assert "PTTYPE" not in found
    with mounted(made) as root:
        assert sorted(p.name for p in (root / CONTAINERD).iterdir()) == sorted(CACHE_TREES)
        record = json.loads((root / RECORD).read_text())
        assert (record["target"], record["platform"]) == (target, host_platform())
        labels = {label(p).split(":")[2] for p in root.rglob("*") if label(p)}
        assert labels == ({"container_var_lib_t", "container_file_t"} if target == "al2023-volume" else set())
    expected = [made.path.with_name("d.img.vhd")] if target == "azure-data" else []
    assert list(made.exports) == expected
    assert all(path.exists() for path in expected)


def test_amazon_linux_gets_the_labels_of_its_policy(baking: Bake) -> None:
    """As container.fc has them: snapshots may be written by containers, the rest is containerd's."""
    with mounted(baking("al2023-volume")) as root:
        trees = root / CONTAINERD
        snapshots = trees / CACHE_TREES[2] / "snapshots"
        assert label(next(snapshots.rglob("data.txt"))) == label(snapshots) == "system_u:object_r:container_file_t:s0"
        for path in (trees / CACHE_TREES[0], trees / CACHE_TREES[2], trees / CACHE_TREES[2] / "metadata.db"):
            assert label(path) == "system_u:object_r:container_var_lib_t:s0"


@pytest.mark.parametrize("loop", [True, False])
def test_gke_gets_layers_and_two_lists_of_them(baking: Bake, tmp_path: Path, loop: bool) -> None:
    made = baking("gke-secondary", loop=loop, archive=True)
    assert blkid(made.path)["TYPE"] == "ext4"
    (image,) = made.images
    with mounted(made) as root:
        assert sorted(p.name for p in root.iterdir() if p.name != "lost+found") == [
            "images.metadata", "snapshots", "snapshots.metadata", "var"]  # fmt: skip
        rows = gke.parse_layers((root / gke.LAYERS).read_text())
        assert list(rows) == [layer["chain"] for layer in image["unpacked"]]
        for layer in image["unpacked"]:
            path, digest = rows[layer["chain"]]
            assert (path, digest) == (layer["path"], checksum(root / path))
        assert (root / rows[image["unpacked"][1]["chain"]][0] / "opt/app/data.txt").read_text() == "second layer\n"
        assert image["reference"] in (root / gke.IMAGES).read_text()
        assert not (root / CONTAINERD).exists()
    (archive,) = made.exports
    subprocess.run(["tar", "-xzf", archive, "-C", tmp_path], check=True)
    assert blocks.scan(tmp_path / "disk.raw") == blocks.scan(made.path)
    if loop:
        made.path.rename(tmp_path / "elsewhere.img")
        with pytest.raises(ConfigError, match=r"d\.img\.tar\.gz: already there"):
            baking("gke-secondary")
        assert archive.exists()
        baking("gke-secondary", force=True)
        assert not archive.exists()  # it was of another disk than the one beside it


def checksum(folder: Path) -> str:
    """The tool's own rule, by the programs that it uses."""
    script = 'find "$1" -type f -exec md5sum {} + | cut -d" " -f1 | LC_ALL=C sort | md5sum | cut -d" " -f1'
    return subprocess.run(["sh", "-c", script, "sh", folder], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("more", [{"weights": (WeightsInput(store="s"),)}, {"keep_blobs": True}, {"images": ()}])
def test_gke_holds_images_alone(baking: Bake, more: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"holds unpacked images and nothing else|nothing to bake"):
        baking("gke-secondary", **more)


def test_azure_gets_a_vhd_of_the_same_disk(baking: Bake) -> None:
    made = baking("azure-data")
    program = process.need("qemu-img", "qemu-utils")
    subprocess.run([program, "compare", "-f", "raw", "-F", "vpc", made.path, made.exports[0]], check=True)


def test_blobs_and_deleted_blocks_stay_where_asked(baking: Bake, plain: DataVolume, layout: Path, tmp_path: Path) -> None:
    """What the switches are for: the size of the same disk with and without them."""
    kept = baking("raw", keep_blobs=True)
    blobs = Path(CONTAINERD, CACHE_TREES[0], "blobs", "sha256")
    with mounted(kept) as root:
        digests = {digest.removeprefix("sha256:") for digest, _ in kept.images[0]["layers"]}
        assert digests <= {path.name for path in (root / blobs).iterdir() if not path.is_symlink()}
        assert json.loads((root / RECORD).read_text())["blobs_kept"] is True
    assert plain.blocks < kept.blocks
    # Layers of an archive are copied onto the disk, and deleted there.
    archive = (ImageInput(Path(shutil.make_archive(str(tmp_path / "image"), "tar", layout))),)
    loose = baking("raw", images=archive, trim=False, force=True)
    assert baking("raw", images=archive, force=True).blocks < loose.blocks


def test_another_machines_image_is_baked_as_data(baking: Bake, tmp_path: Path) -> None:
    oci.write_layout(tmp_path / "other", arch="s390x")
    made = baking("raw", images=(ImageInput(tmp_path / "other"),), platform="linux/s390x")
    assert made.images[0]["platform"] == "linux/s390x"
    with mounted(made) as root:
        assert next(root.rglob("data.txt")).read_text() == "second layer\n"
        assert json.loads((root / RECORD).read_text())["platform"] == "linux/s390x"


def _installed() -> list[str]:
    folder = Path("~/.cache/builder/containerd").expanduser()
    return sorted(path.parent.name for path in folder.glob("*/containerd")) or ["none"]


@pytest.mark.parametrize("version", _installed())
def test_any_containerd_bakes(baking: Bake, plain: DataVolume, version: str) -> None:
    """Those that were fetched for the tests; the layers are the same whoever unpacked them."""
    if version == "none":
        pytest.skip("no further containerd in ~/.cache/builder/containerd")
    given = programs.find(Path("~/.cache/builder/containerd").expanduser() / version)
    made = baking("raw", programs=given)
    assert made.containerd == version
    digests, expected = ([layer["sha256"] for layer in one.images[0]["unpacked"]] for one in (made, plain))
    assert digests == expected


def test_a_path_without_containerd_is_told(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="no such program"):
        programs.find(tmp_path)
