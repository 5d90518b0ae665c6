"""What goes wrong while a disk is baked: one clear error with its exit code, and nothing left behind."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError
from builder.node import workplace
from builder.node.bake import BakePlan, bake
from builder.node.inputs import ImageInput
from builder.progress import NoProgress
from tests import oci
from tests.leftovers import leftovers

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root")]
SIZE = 1 << 30
ROOT = Path(__file__).parents[3]
WAIT_S = 240
BAKE = """
import sys
from pathlib import Path
from builder.errors import BuilderError
from builder.node import bake
from builder.node.inputs import ImageInput
try:
    loop = "--no-loop" not in sys.argv
    bake.bake(bake.BakePlan(Path(sys.argv[1]), (ImageInput(Path(sys.argv[2])),), size=1 << 30, loop=loop))
except BuilderError as exc:
    print(exc.message + " | " + exc.hint, file=sys.stderr)
    sys.exit(exc.exit_code)
"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oci") / "layout"
    oci.write_layout(folder)
    return folder


@pytest.fixture(autouse=True)
def _nothing_stays(loop_root: None, tmp_path: Path) -> Iterator[None]:
    yield
    assert leftovers(tmp_path) == []
    assert [path.name for path in tmp_path.rglob("*") if path.suffix in (".partial", ".tree", ".inputs")] == []


def zeros(folder: Path, size: int) -> Path:
    """A layout that is small, and unpacks to `size` bytes."""
    oci.write_layout(folder, layers=[oci.tar({"zeros": bytes(size)})])
    return folder


class Filling(NoProgress):
    """Takes the new disk's space, all but 1 MiB, at the first byte that is imported onto it."""

    def __init__(self, out: Path) -> None:
        self.out, self.junk = out, 0

    def advance(self, task: int, amount: int) -> None:
        for folder in _workplaces(self.out) if not self.junk else ():
            self.junk = shutil.disk_usage(folder / "mnt").free - (1 << 20)
            with (folder / "mnt" / "junk").open("wb") as out:
                os.posix_fallocate(out.fileno(), 0, self.junk)


def test_a_disk_that_is_too_small_names_the_size_that_would_do(tmp_path: Path) -> None:
    """It unpacks to 300 MiB, of which the estimate beforehand knows nothing."""
    folder, progress = zeros(tmp_path / "layout", 300 << 20), Filling(tmp_path / "o.img")
    with pytest.raises(ConfigError, match=r"a disk of 1\.00 GiB is too small: 57[0-9] MiB are needed") as caught:
        bake(BakePlan(progress.out, (ImageInput(folder),), size=SIZE), progress=progress)
    assert caught.value.hint == "--size 2GiB would do"


def test_a_full_host_is_told_from_a_full_disk(tmp_path: Path) -> None:
    """The file system below OUT fills up: writes to the loop device fail, whatever the new file system makes of that."""
    folder, small = zeros(tmp_path / "layout", 320 << 20), tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=290m", "tmpfs", small], check=True)
    try:
        with pytest.raises(CapabilityError, match=f"{small}: no space left"):
            bake(BakePlan(small / "o.img", (ImageInput(folder),), size=SIZE))
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


class Killing(NoProgress):
    """Ends the private containerd of the bake of `out` at the first byte that is handed to it."""

    def __init__(self, out: Path) -> None:
        self.out, self.killed = out, 0

    def advance(self, task: int, amount: int) -> None:
        for line in subprocess.check_output(["ps", "-eo", "pid,args"], text=True).splitlines():
            pid, _, args = line.strip().partition(" ")
            if not self.killed and "--config" in args and any(str(p) in args for p in _workplaces(self.out)):
                os.kill(int(pid), signal.SIGKILL)
                self.killed += 1


def _workplaces(out: Path) -> list[Path]:
    return [p.parent for p in workplace.RUN.glob("*/record.json") if f'"{out}' in p.read_text()]


def test_a_containerd_that_dies_is_named(layout: Path, tmp_path: Path) -> None:
    progress = Killing(tmp_path / "o.img")
    with pytest.raises(BuilderError, match="the private containerd was ended by SIGKILL during the bake"):
        bake(BakePlan(progress.out, (ImageInput(layout),), size=SIZE), progress=progress)
    assert progress.killed == 1


def _flip(folder: Path) -> None:
    oci.write_layout(folder)
    blob = max((folder / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    body = bytearray(blob.read_bytes())
    body[len(body) // 2] ^= 1
    blob.write_bytes(body)


def _cut(folder: Path) -> None:
    """A layer whose digest is right, and whose gzip stream ends early."""
    raw = oci.tar({"data": random.Random(1).randbytes(200_000)})
    oci.write_layout(folder, layers=[raw, gzip.compress(raw)[:100_000]], plain=True)
    manifest = _change(folder, "layers", lambda rows: [rows[0], {**rows[1], "mediaType": rows[0]["mediaType"] + "+gzip"}])
    assert manifest


def _change(folder: Path, key: str, by: object) -> str:
    """Rewrite the manifest, and the index that names it."""
    index = json.loads((folder / "index.json").read_text())
    entry = index["manifests"][0]
    manifest = json.loads((folder / "blobs" / entry["digest"].replace(":", "/")).read_text())
    manifest[key] = by(manifest[key])  # type: ignore[operator]
    index["manifests"] = [{**entry, **oci.blob(folder, json.dumps(manifest).encode(), entry["mediaType"])}]
    (folder / "index.json").write_text(json.dumps(index))
    return str(index["manifests"][0]["digest"])


def _claim(folder: Path) -> None:
    oci.write_layout(folder, diff_ids=["sha256:" + "0" * 64, "sha256:" + "1" * 64])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_flip, r"sha256:[0-9a-f]{64} has sha256:[0-9a-f]{64}"),
        (_cut, r"layer sha256:[0-9a-f]{64} cannot be unpacked: the gzip stream ends early"),
        (_claim, rf"layer sha256:[0-9a-f]{{64}} unpacks to sha256:[0-9a-f]{{64}}, its configuration says sha256:{'0' * 64}"),
    ],
)
def test_a_damaged_layer_is_named(tmp_path: Path, damage: object, says: str) -> None:
    damage(tmp_path / "layout")  # type: ignore[operator]
    with pytest.raises(IntegrityError, match=says):
        bake(BakePlan(tmp_path / "o.img", (ImageInput(tmp_path / "layout"),), size=SIZE))


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        ("", "/dev/loop-control: no loop devices here"),
        (
            "mknod -m 666 /dev/loop-control c 1 3",
            r"no loop device: losetup: cannot find an unused loop device",
        ),
    ],
    ids=["none", "all in use"],
)
def test_without_a_loop_device_it_says_what_to_do(layout: Path, tmp_path: Path, devices: str, says: str) -> None:
    """In a mount namespace with a /dev of its own: without loop devices; and with a control device that has none to give."""
    make = "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9"
    script = " && ".join([make, *([devices] if devices else []), 'exec "$@"'])
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", BAKE, tmp_path / "o.img", layout]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.returncode == 4, done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert "--no-loop" in done.stderr


def test_root_of_a_user_namespace_is_told_why(layout: Path, tmp_path: Path) -> None:
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", BAKE, tmp_path / "o.img", layout]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.returncode == 4, done.stderr
    assert "that of a user namespace may not mount disks" in done.stderr


def begin(out: Path, layout: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BAKE, out, layout, *more], cwd=ROOT, stderr=subprocess.DEVNULL)


def test_two_bakes_at_once(layout: Path, tmp_path: Path) -> None:
    """Of two files: both are made. Of one: the second is refused, and does the first no harm."""
    outs = [tmp_path / "a.img", tmp_path / "b.img"]
    children = [begin(out, layout) for out in outs]
    deadline = time.monotonic() + WAIT_S
    while not outs[0].with_name("a.img.partial").exists():
        assert children[0].poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children[0].send_signal(signal.SIGSTOP)  # else it may have ended before it is asked for again
    try:
        with pytest.raises(CapabilityError, match="another process works on it"):
            bake(BakePlan(outs[0], (ImageInput(layout),), size=SIZE))
    finally:
        children[0].send_signal(signal.SIGCONT)
    for child, out in zip(children, outs, strict=True):
        assert child.wait(WAIT_S) == 0
        assert out.stat().st_size == SIZE


def test_killed_at_any_time_it_starts_again_and_leaves_nothing(layout: Path, tmp_path: Path) -> None:
    out, seed = tmp_path / "k.img", random.randrange(1 << 30)
    begun = time.monotonic()
    assert begin(out, layout).wait(WAIT_S) == 0
    whole_s, chance = time.monotonic() - begun, random.Random(seed)
    out.unlink()
    killed = 0
    for _ in range(8):
        child = begin(out, layout)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(chance.uniform(0.2, 1.0) * whole_s)
        child.kill()
        killed += child.wait() == -signal.SIGKILL
        out.unlink(missing_ok=True)
    assert killed, f"seed {seed}"
    made = bake(BakePlan(out, (ImageInput(layout),), size=SIZE))
    assert made.blocks, f"seed {seed}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.img"], f"seed {seed}"
    assert leftovers(tmp_path) == [], f"seed {seed}"


def test_killed_without_loop_devices_the_same_bake_starts_again(layout: Path, tmp_path: Path) -> None:
    """The folder that it left is its own, and no reason to refuse."""
    out = tmp_path / "t.img"
    child = begin(out, layout, "--no-loop")
    deadline = time.monotonic() + WAIT_S
    while not (tmp_path / "t.img.tree" / "var").exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert (tmp_path / "t.img.tree").exists()
    made = bake(BakePlan(out, (ImageInput(layout),), size=SIZE, loop=False))
    assert f"folder {tmp_path / 't.img.tree'}" in made.cleaned
    assert [path.name for path in tmp_path.iterdir()] == ["t.img"]
