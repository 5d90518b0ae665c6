"""A raw disk file: sparse, one partition, a file system that Bottlerocket's kernels can mount.

The partition is reached as a loop device with an offset, not by partition scanning, because the running kernel may
have no GPT support. The disk has its final size from the start: a file system grown later keeps the small allocation
groups of its birth (2 GiB grown to 500 GiB: about 1000 of them; an empty 500 GiB XFS occupies 5 blocks).
"""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from builder import process, units
from builder.errors import BuilderError, CapabilityError, IntegrityError
from builder.node.targets import Extent

GIB = 1 << 30
BUSY_S = 60.0  # for whatever keeps a mount busy to end: a shim writes its last words to a slow disk
MIN_SIZE = GIB  # EBS volumes are whole GiB; mkfs.xfs refuses less than 300 MiB
OPTIONS = "noatime,nosuid,nodev"  # of Bottlerocket's local.mount, so that what fails on a node fails here
XFS_OPTIONS = ("-m", "crc=1,finobt=1,reflink=1,bigtime=1,inobtcount=1,rmapbt=0", "-i", "sparse=1,nrext64=0")
# Incompatible features that Linux 6.1, the oldest kernel of a current Bottlerocket, can mount: ftype, sparse inodes,
# meta-uuid, bigtime, needs-repair, nrext64 (fs/xfs/libxfs/xfs_format.h, XFS_SB_FEAT_INCOMPAT_ALL at v6.1).
XFS_INCOMPAT_6_1 = 0x3F
XFS_INCOMPAT_AT = 216  # offset of sb_features_incompat, big endian, in the superblock


def create(path: Path, size: int) -> None:
    """An empty sparse file of `size` bytes. Raises CapabilityError if the file system cannot hold one so large."""
    try:
        with path.open("xb") as disk:
            disk.truncate(size)
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise CapabilityError(f"{path}: a sparse file of {units.format_size(size)}: {exc.strerror}") from exc


def need_space(folder: Path, expected: int) -> None:
    """Raises CapabilityError if `folder` has less than `expected` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < expected:
        raise CapabilityError(
            f"{folder}: {units.format_size(free)} free, about {units.format_size(expected)} needed",
            hint="free some space, or bake to another folder",
        )


def need_root(what: str) -> None:
    """Raises CapabilityError unless this process may mount, make device nodes and write trusted.* attributes.

    Root of a user namespace may not: the kernel lets it mount neither xfs nor ext4, and keeps mknod and the attributes that
    overlayfs marks opaque folders with from it (user_namespaces(7), xattr(7)).
    """
    hint = "run it with sudo or in a privileged container; `builder bake lint` and `builder render` work without"
    if os.geteuid() != 0:
        raise CapabilityError(f"{what} needs root: it mounts file systems and starts a private containerd", hint=hint)
    if not _initial_users():
        raise CapabilityError(f"{what} needs the machine's root; that of a user namespace may not mount disks", hint=hint)


def _initial_users() -> bool:
    """Whether user ids here are those of the machine: the initial user namespace maps all of them onto themselves."""
    try:
        return Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    except OSError:
        return True


def has_loop() -> bool:
    """Whether loop devices can be made here."""
    return os.access("/dev/loop-control", os.R_OK | os.W_OK)


@contextmanager
def attached(path: Path, extent: Extent) -> Iterator[Path]:
    """A loop device of the file system alone; detached at the end, also after an error."""
    if not has_loop():
        raise CapabilityError("/dev/loop-control: no loop devices here", hint="run in a privileged container, or use --no-loop")
    done = process.run([
        process.need("losetup", "util-linux"), "--find", "--show", "--offset", str(extent.offset),
        "--sizelimit", str(extent.size), path,
    ], check=False)  # fmt: skip
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise CapabilityError(f"{path}: no loop device: {said}", hint="detach some (losetup --list), or use --no-loop")
    device = Path(done.stdout.decode().strip())
    try:
        yield device
    finally:
        _detach(device)


def _detach(device: Path) -> None:
    """Let go of the file, and wait for it: whoever has the device open, or a copy of its mount in a namespace of their own, as
    a container that is just being made, keeps it a moment longer, and the kernel detaches it when they leave (losetup(8))."""
    file, end = Path("/sys/block", device.name, "loop/backing_file"), time.monotonic() + BUSY_S
    with suppress(OSError):  # gone
        mine = file.read_text().split(" (deleted)")[0].strip()
        process.run([process.need("losetup"), "--detach", device], check=False)
        while file.read_text().split(" (deleted)")[0].strip() == mine and time.monotonic() < end:
            time.sleep(0.02)


@contextmanager
def mounted(device: Path, point: Path, *, options: str = OPTIONS) -> Iterator[Path]:
    """`device` mounted at `point`; synced and unmounted at the end, also after an error."""
    process.run([process.need("mount"), "-o", options, device, point])
    try:
        yield point
    finally:
        unmount(point)


def unmount(point: Path) -> None:
    """Unmount, and wait until it is gone; a busy mount is tried for a while (a shim may still be leaving)."""
    end = time.monotonic() + BUSY_S
    while True:
        done = process.run([process.need("umount"), point], check=False)
        if done.returncode == 0 or not point.is_mount():
            return
        if time.monotonic() > end:
            raise BuilderError(f"{point}: cannot be unmounted: {done.stderr.decode().strip()}", hint=f"umount {point}")
        time.sleep(0.1)


def make_xfs(device: Path, *, label: str = "") -> None:
    """XFS with features that every kernel from 6.1 on mounts; refused if this mkfs.xfs cannot make one."""
    process.run([process.need("mkfs.xfs", "xfsprogs"), "-q", "-K", *XFS_OPTIONS, *(["-L", label] if label else []), device])
    with device.open("rb") as raw:
        superblock = raw.read(512)
    (features,) = struct.unpack_from(">I", superblock, XFS_INCOMPAT_AT)
    if superblock[:4] != b"XFSB" or features & ~XFS_INCOMPAT_6_1:
        raise IntegrityError(f"mkfs.xfs set incompatible features {features:#x}; Linux 6.1 knows {XFS_INCOMPAT_6_1:#x}",
                             hint="use xfsprogs 6.1 to 6.12")  # fmt: skip


def make_ext4(device: Path, *, label: str = "") -> None:
    """ext4 on a device, its tables written at once, so that no kernel thread on the node writes them later."""
    process.run([
        process.need("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", "-m", "0",
        "-E", "lazy_itable_init=0,lazy_journal_init=0", *(["-L", label] if label else []), device,
    ])  # fmt: skip


def make_ext4_from(tree: Path, path: Path, extent: Extent, *, label: str = "") -> None:
    """ext4 at its place in the disk file `path`, filled with `tree`: no loop device, no mount.

    mke2fs -d keeps owners, modes, device nodes and extended attributes (trusted.overlay.*, security.*) of the tree.
    """
    process.run([
        process.need("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", "-m", "0", "-d", tree,
        "-E", f"offset={extent.offset}", *(["-L", label] if label else []), path, f"{extent.size // 1024}k",
    ])  # fmt: skip


def flush(point: Path) -> None:
    """Write everything to the disk. Raises BuilderError if a write failed, even one that the kernel did behind our back:
    unmounting alone does not tell (syncfs reports such errors since Linux 5.8)."""
    process.run(["sync", "--file-system", point])


@contextmanager
def flushing(point: Path) -> Iterator[None]:
    """Within, what the file system holds by now is written. Raises as `flush` does, at the end. For a mount point only."""
    if not point.is_mount():
        yield
        return
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(flush, point)
        yield
        written.result()


def trim(point: Path) -> None:
    """Punch holes where the file system holds nothing, so that deleted blobs do not travel in the snapshot."""
    process.run([process.need("fstrim", "util-linux"), point])
