"""Where the file system lies on a disk, and whether a node of the target would find it there."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from builder import units
from builder.errors import IntegrityError
from builder.node import gpt
from builder.node.disk import XFS_INCOMPAT_6_1, XFS_INCOMPAT_AT
from builder.node.proof.report import Notes
from builder.node.targets import Extent, Target, WholeDisk

SECTOR = 512
CHECK = "partition table"


@dataclass(frozen=True, slots=True)
class FileSystem:
    """As its superblock says. kind: "xfs" or "ext4". label: "" for none. size: bytes. incompatible: XFS feature bits."""

    kind: str
    label: str
    size: int
    incompatible: int = 0


def locate(path: Path, notes: Notes) -> Extent | None:
    """Where the file system is: the only partition of a GPT, or the whole disk. None, with findings, if it cannot be told."""
    with path.open("rb") as disk:
        head = disk.read(2 * SECTOR)
    if superblock(path, WholeDisk(path.stat().st_size)):
        if head[SECTOR : SECTOR + 8] == b"EFI PART":
            notes.add(CHECK, "", ["a table and a file system share the first sectors"])
        return WholeDisk(path.stat().st_size)
    try:
        table = gpt.read(path)
    except IntegrityError as exc:
        notes.add(CHECK, "", [f"{exc.message}; and no XFS or ext4 file system begins with the disk"])
        return None
    if len(table.partitions) != 1:
        notes.add(CHECK, "", [*table.faults, f"{len(table.partitions)} partitions, expected 1"])
        return None
    return table.partitions[0]


def audit(path: Path, extent: Extent, target: Target, notes: Notes) -> None:
    """The table and the file system as the target's nodes look for them."""
    expected = target.partition(path.stat().st_size - path.stat().st_size % gpt.MIB)
    if isinstance(extent, gpt.Partition) and expected is None:
        notes.add(CHECK, "", [f"there is one, with {extent.label!r}; {target.name} expects none"])
    elif isinstance(extent, gpt.Partition) and expected is not None:
        findings = list(gpt.read(path).faults)
        for name in ("type_guid", "guid", "label", "first", "last"):
            is_, should = getattr(extent, name), getattr(expected, name)
            findings += [] if is_ == should else [f"{name} is {str(is_)!r}, expected {str(should)!r}"]
        notes.add(CHECK, f"{extent.label}, both copies sound", findings)
    elif expected is not None:
        notes.add(CHECK, "", [f"none; {target.name} finds its partition by the label {expected.label!r}"])
    else:
        notes.add(CHECK, "none, as expected", [])
    _audit_file_system(path, extent, target, notes)


def _audit_file_system(path: Path, extent: Extent, target: Target, notes: Notes) -> None:
    found = superblock(path, extent)
    if found is None:
        notes.add("file system", "", [f"neither XFS nor ext4 at byte {extent.offset}"])
        return
    findings = []
    if target.label and found.label != target.label:
        findings.append(f"label is {found.label!r}, expected {target.label!r}")
    if unknown := found.incompatible & ~XFS_INCOMPAT_6_1:
        findings.append(f"incompatible features {unknown:#x}, which Linux 6.1 does not know")
    # mkfs rounds down to its own block or group; more than 1 % less means that the disk grew and the file system did not.
    if not extent.size * 0.99 <= found.size <= extent.size:
        sizes = f"{units.format_size(found.size)} in {units.format_size(extent.size)}"
        findings.append(f"{sizes}; made at another size, it would grow with many small allocation groups")
    label = f" {found.label!r}" if found.label else ""
    notes.add("file system", f"{found.kind}{label}, {units.format_size(found.size)}", findings)


def superblock(path: Path, extent: Extent) -> FileSystem | None:
    """The file system at `extent`; None if it is neither XFS nor ext4.

    Sources: Linux fs/xfs/libxfs/xfs_format.h (struct xfs_dsb, big endian), fs/ext4/ext4.h (struct ext4_super_block, 1024
    bytes in, little endian).
    """
    with path.open("rb") as disk:
        disk.seek(extent.offset)
        raw = disk.read(4096).ljust(4096, b"\0")
    if raw[:4] == b"XFSB":
        block, count = struct.unpack_from(">IQ", raw, 4)
        (features,) = struct.unpack_from(">I", raw, XFS_INCOMPAT_AT)
        return FileSystem("xfs", _text(raw[108:120]), block * count, features)
    (magic,) = struct.unpack_from("<H", raw, 1024 + 56)
    if magic != 0xEF53:
        return None
    low, shift = struct.unpack_from("<I", raw, 1024 + 4)[0], struct.unpack_from("<I", raw, 1024 + 24)[0]
    wide = struct.unpack_from("<I", raw, 1024 + 96)[0] & 0x80  # INCOMPAT_64BIT
    high = struct.unpack_from("<I", raw, 1024 + 0x150)[0] if wide else 0
    return FileSystem("ext4", _text(raw[1024 + 120 : 1024 + 136]), ((high << 32) + low) << (10 + min(shift, 6)))


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode(errors="replace")
