"""What an image may hold, and that a node finds it so: the overlay of a baked disk against the layers, read by GNU tar.

The reference is made with no code of ours and none of containerd's: GNU tar unpacks each layer into a folder, a few lines below
apply its whiteouts by the rules of the image-spec (layer.md, "Whiteouts"), and both trees are listed entry by entry.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builder.node.bake import BakePlan, DataVolume, bake
from builder.node.inputs import ImageInput
from builder.node.targets import TARGETS
from tests import oci

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root")]
SIZE = 1 << 30
# cap_net_raw=ep, as vfs_cap_data of revision 2 (linux/capability.h)
CAPABILITY = struct.pack("<IIIII", 0x0200_0001, 1 << 13, 0, 0, 0)
ODD = b"odd \xff\xfe\nname".decode("utf-8", "surrogateescape")
LONG = "/".join(["n" * 60] * 5)


def entry(name: str, body: bytes = b"", *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, uid: int = 0, gid: int = 0,
          link: str = "", device: tuple[int, int] = (0, 0), mtime: int = 1_600_000_000, xattrs: dict[str, bytes] | None = None,
          ) -> tuple[tarfile.TarInfo, bytes]:  # fmt: skip
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid, info.linkname, info.mtime = kind, mode, uid, gid, link, mtime
    info.size, (info.devmajor, info.devminor) = len(body), device
    for key, value in (xattrs or {}).items():
        info.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    return info, body


def folder(name: str, mode: int = 0o755, **rest: object) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.DIRTYPE, mode=mode, **rest)  # type: ignore[arg-type]


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for info, body in entries:
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


LAYERS = [
    layer(
        folder("bin"), entry("bin/su", b"su", mode=0o4755), entry("bin/wall", b"w", mode=0o2755, gid=5),
        entry("bin/ping", b"ping", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        folder("tmp", 0o1777), folder("home", uid=1000, gid=1000, mode=0o700),
        entry("home/nobody", b"n", uid=65534, gid=65534), entry("home/last", b"l", uid=2**32 - 2, gid=2**32 - 2),
        entry("home/big", os.urandom(300_000), mode=0o400), entry("home/empty"), entry(f"home/{ODD}", b"odd"),
        entry("home/linked", b"same"), entry("home/hard", kind=tarfile.LNKTYPE, link="home/linked"),
        folder(LONG), entry(f"{LONG}/deep", b"deep"),
        entry("home/note", b"x", xattrs={"user.note": b"\xffraw\x00value", "user.empty": b""}),
        folder("opt"), folder("opt/old"), entry("opt/old/a", b"a"), entry("opt/old/b", b"b"), entry("opt/kept", b"kept"),
        entry("opt/becomes-folder", b"file"), folder("opt/becomes-file"), entry("opt/becomes-file/in", b"i"),
    ),
    layer(),  # nothing at all
    layer(
        folder("opt"), folder("opt/old"), entry("opt/old/.wh..wh..opq"), entry("opt/old/c", b"c"),
        entry("opt/.wh.kept"), entry("bin/su", b"su2", mode=0o6711, uid=7, gid=8, mtime=1_500_000_000),
        folder("opt/becomes-folder", 0o750), entry("opt/becomes-folder/in", b"i"), entry("opt/becomes-file", b"f"),
        folder("dev"), entry("dev/null", kind=tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
        entry("dev/disk", kind=tarfile.BLKTYPE, mode=0o660, gid=6, device=(8, 0)),
        entry("dev/pipe", kind=tarfile.FIFOTYPE, mode=0o622),
        entry("absolute", kind=tarfile.SYMTYPE, link="/etc/passwd", mode=0o777),
        entry("dangling", kind=tarfile.SYMTYPE, link="../../no/where", mode=0o777, uid=12),
    ),
    layer(folder("opt"), folder("opt/old"), entry("opt/old/d", b"d"), folder("tmp", 0o1777, mtime=1_234_567_890)),
]  # fmt: skip


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trees") / "layout"
    oci.write_layout(path, layers=LAYERS)
    return path


@pytest.fixture(scope="module")
def reference(loop_root: None, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, tuple[object, ...]]:
    """What the image holds, by GNU tar."""
    root = tmp_path_factory.mktemp("reference")
    root.chmod(0o755)
    for raw in LAYERS:
        members = tarfile.open(fileobj=io.BytesIO(raw), errors="surrogateescape").getmembers()  # noqa: SIM115
        for member in members:
            whiteout(root, member.name)
        for member in members:
            at = root / member.name
            if at.is_symlink() or (at.exists() and at.is_dir() != member.isdir()):
                subprocess.run(["rm", "-rf", at], check=True)
        subprocess.run(["tar", "--extract", "--xattrs", "--xattrs-include=*", "--same-owner", "--same-permissions",
                        "--numeric-owner", "--exclude=.wh.*", "--directory", root], input=raw, check=True)  # fmt: skip
    return listing(root)


def whiteout(root: Path, name: str) -> None:
    """Remove what the marker `name` of the layer above hides."""
    at = root / name
    if at.name == ".wh..wh..opq":
        for child in at.parent.iterdir():
            subprocess.run(["rm", "-rf", child], check=True)
    elif at.name.startswith(".wh."):
        subprocess.run(["rm", "-rf", at.parent / at.name[4:]], check=True)


def listing(root: Path) -> dict[bytes, tuple[object, ...]]:
    """path: kind and mode, owner, device, time, attributes, content, and the names of the same file. Of folders only the
    time of /tmp, which the last layer names: whatever is put into one moves its time."""
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, list[bytes]] = {}
    for at, folders, files in os.walk(os.fsencode(root)):
        for name in folders + files:
            path = os.path.join(at, name)  # noqa: PTH118  # names that are no text
            seen, relative = os.lstat(path), os.path.relpath(path, os.fsencode(root))
            kind = seen.st_mode
            content: object = b""
            if stat.S_ISREG(kind):
                with open(path, "rb") as stream:  # noqa: PTH123
                    content = hashlib.sha256(stream.read()).hexdigest()
                inodes.setdefault(seen.st_ino, []).append(relative)
            elif stat.S_ISLNK(kind):
                content = os.readlink(path)  # noqa: PTH115
            keys = [key for key in os.listxattr(path, follow_symlinks=False) if key != "security.selinux"]
            attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}
            device = seen.st_rdev if stat.S_ISCHR(kind) or stat.S_ISBLK(kind) else 0
            dated = not stat.S_ISDIR(kind) or relative == b"tmp"
            mtime = int(seen.st_mtime) if dated else 0
            found[relative] = (oct(kind), seen.st_uid, seen.st_gid, device, mtime, attributes, content)
    for names in inodes.values():
        for name in names:
            found[name] = (*found[name], sorted(names))
    return found


@contextmanager
def overlay(volume: DataVolume, folder: Path) -> Iterator[Path]:
    """The image as a node mounts it: the disk by the kernel, its layers as lower folders of an overlay."""
    table = volume.target == "bottlerocket"
    disk, merged = folder / "disk", folder / "merged"
    disk.mkdir()
    merged.mkdir()
    options = f"loop,ro,{'noload' if volume.filesystem == 'ext4' else 'norecovery'},offset={1 << 20 if table else 0}"
    subprocess.run(["mount", "-o", options, volume.path, disk], check=True)
    try:
        lower = ":".join(str(disk / one["path"]) for one in reversed(volume.images[0]["unpacked"]))
        subprocess.run(["mount", "-t", "overlay", "-o", f"lowerdir={lower}", "overlay", merged], check=True)
        try:
            yield merged
        finally:
            subprocess.run(["umount", merged], check=True)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(("target", "loop"), [("bottlerocket", True), ("gke-secondary", True), ("gke-secondary", False)])
def test_a_node_sees_exactly_what_the_layers_hold(
    layout: Path, reference: dict[bytes, tuple[object, ...]], tmp_path: Path, target: str, loop: bool
) -> None:
    assert {b"bin/ping", b"home/hard", os.fsencode(f"home/{ODD}"), b"dev/pipe", b"opt/old/d"} <= reference.keys()
    assert not {b"opt/kept", b"opt/old/a"} & reference.keys()
    assert reference[b"bin/ping"][5] == {"security.capability": CAPABILITY}
    order = BakePlan(tmp_path / "d.img", (ImageInput(layout),), size=SIZE, loop=loop, target=TARGETS[target])
    with overlay(bake(order), tmp_path) as merged:
        found = listing(merged)
    assert found.keys() == reference.keys()
    assert {name: row for name, row in found.items() if row != reference[name]} == {}
