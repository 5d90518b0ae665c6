"""A GUID partition table with one partition: written, and read back with every fault named.

Own code, so that a disk can be made and audited where no root, loop device or partition tool is at hand. Layout and
CRC rules: UEFI specification 2.10, chapter 5 (5.2.3 protective MBR, 5.3.2 header, 5.3.3 entry array). 512-byte sectors:

    LBA 0 protective MBR · 1 header · 2..33 entries · 2048.. partition · last 33: entries, header
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.errors import IntegrityError

SECTOR = 512
MIB = 1 << 20
ENTRIES, ENTRY_BYTES = 128, 128
_ARRAY_SECTORS = ENTRIES * ENTRY_BYTES // SECTOR
_HEADER = struct.Struct("<8sIIII QQQQ 16s QIII")  # 92 bytes; integers little endian, GUIDs mixed endian (bytes_le)
_ENTRY = struct.Struct("<16s16sQQQ72s")
_SIGNATURE, _REVISION = b"EFI PART", 0x00010000


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition. first, last: LBAs of 512 bytes, both inclusive."""

    type_guid: uuid.UUID
    guid: uuid.UUID
    first: int
    last: int
    label: str

    @property
    def offset(self) -> int:
        """Its first byte on the disk."""
        return self.first * SECTOR

    @property
    def size(self) -> int:
        """Bytes."""
        return (self.last - self.first + 1) * SECTOR


@dataclass(frozen=True, slots=True)
class Table:
    """What a disk says about itself. faults: one sentence each; empty when both copies are sound and agree."""

    disk_guid: uuid.UUID
    partitions: tuple[Partition, ...]
    faults: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {
            "disk_guid": str(self.disk_guid),
            "partitions": [
                {"type": str(p.type_guid), "guid": str(p.guid), "label": p.label, "offset": p.offset, "size": p.size}
                for p in self.partitions
            ],
        }


def whole_disk(size: int, *, type_guid: str, guid: str, label: str) -> Partition:
    """The partition from 1 MiB to the last MiB boundary that leaves a footer of 1 MiB, on a disk of `size` bytes.

    Source: Bottlerocket's partyplanner (`GPT_MIB`), which keeps one MiB for the table at either end.
    """
    if size % MIB or size < 3 * MIB:
        raise ValueError(f"a disk of {size} bytes; expected whole MiB, at least 3")
    return Partition(uuid.UUID(type_guid), uuid.UUID(guid), MIB // SECTOR, (size - MIB) // SECTOR - 1, label)


def encode(size: int, disk_guid: uuid.UUID, partition: Partition) -> tuple[bytes, bytes]:
    """(first 34 sectors, last 33 sectors) of a disk of `size` bytes that holds exactly `partition`."""
    sectors = size // SECTOR
    label = partition.label.encode("utf-16-le")
    entry = _ENTRY.pack(partition.type_guid.bytes_le, partition.guid.bytes_le, partition.first, partition.last, 0, label)
    array = entry.ljust(ENTRIES * ENTRY_BYTES, b"\0")
    backup_array = sectors - 1 - _ARRAY_SECTORS
    primary = _header(1, sectors - 1, sectors, disk_guid, 2, array)
    backup = _header(sectors - 1, 1, sectors, disk_guid, backup_array, array)
    return _protective_mbr(sectors) + primary + array, array + backup


def write(path: Path, disk_guid: uuid.UUID, partition: Partition) -> None:
    """Put the table at both ends of the existing file `path`. Nothing else is touched."""
    size = path.stat().st_size
    head, tail = encode(size, disk_guid, partition)
    with path.open("r+b") as disk:
        disk.write(head)
        disk.seek(size - len(tail))
        disk.write(tail)
        disk.flush()
        os.fsync(disk.fileno())


def read(path: Path) -> Table:
    """The table of the disk `path`, with its faults.

    Raises IntegrityError if neither the primary nor the backup header can be believed.
    """
    size = path.stat().st_size
    with path.open("rb") as disk:
        primary, faults = _copy(disk.fileno(), 1, size, "primary")
        backup, more = _copy(disk.fileno(), size // SECTOR - 1, size, "backup")
        mbr = os.pread(disk.fileno(), SECTOR, 0)
    faults += more
    if mbr[510:512] != b"\x55\xaa" or mbr[450] != 0xEE:
        faults.append("LBA 0: no protective MBR")
    best = primary or backup
    if best is None:
        raise IntegrityError(f"{path}: no partition table:\n" + "\n".join(f"  {f}" for f in faults), where={"file": str(path)})
    if primary and backup and primary != backup:
        faults.append("primary and backup table differ")
    return Table(best[0], best[1], tuple(faults))


def _protective_mbr(sectors: int) -> bytes:
    last = sectors - 1
    entry = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, _chs(last), 1, min(last, 0xFFFFFFFF))
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def _chs(lba: int) -> bytes:
    """Cylinder, head and sector of the old kind, 255 heads and 63 sectors; all ones beyond 1024 cylinders."""
    cylinder, head, sector = lba // (255 * 63), lba // 63 % 255, lba % 63 + 1
    return b"\xff\xff\xff" if cylinder > 1023 else bytes([head, sector | cylinder >> 8 << 6, cylinder & 0xFF])


def _header(me: int, other: int, sectors: int, disk_guid: uuid.UUID, array_lba: int, array: bytes) -> bytes:
    first, last = 2 + _ARRAY_SECTORS, sectors - 2 - _ARRAY_SECTORS

    def pack(crc: int) -> bytes:
        return _HEADER.pack(_SIGNATURE, _REVISION, _HEADER.size, crc, 0, me, other, first, last, disk_guid.bytes_le, array_lba,
                            ENTRIES, ENTRY_BYTES, zlib.crc32(array))  # fmt: skip

    return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")


def _copy(fd: int, lba: int, size: int, name: str) -> tuple[tuple[uuid.UUID, tuple[Partition, ...]] | None, list[str]]:
    """One of the two copies, or None and why."""
    raw = os.pread(fd, SECTOR, lba * SECTOR)
    if len(raw) < SECTOR or raw[:8] != _SIGNATURE:
        return None, [f"{name} header at LBA {lba}: signature is {raw[:8]!r}, expected {_SIGNATURE!r}"]
    parts = _HEADER.unpack(raw[: _HEADER.size])
    length, crc, me, disk_guid, array_lba, count, entry_bytes, array_crc = (parts[i] for i in (2, 3, 5, 9, 10, 11, 12, 13))
    if length != _HEADER.size or entry_bytes != ENTRY_BYTES or not 0 < count <= 1024:
        return None, [f"{name} header at LBA {lba}: {length} bytes, {count} entries of {entry_bytes} bytes"]
    zeroed = raw[:16] + bytes(4) + raw[20 : _HEADER.size]
    array = os.pread(fd, count * entry_bytes, array_lba * SECTOR)
    if zlib.crc32(zeroed) != crc:
        return None, [f"{name} header at LBA {lba}: CRC32 {zlib.crc32(zeroed):08x}, expected {crc:08x}"]
    if zlib.crc32(array) != array_crc:
        return None, [f"{name} entries at LBA {array_lba}: CRC32 {zlib.crc32(array):08x}, expected {array_crc:08x}"]
    faults = [] if me == lba else [f"{name} header at LBA {lba} says it is at LBA {me}"]
    entries = (_ENTRY.unpack_from(array, i * entry_bytes) for i in range(count))
    found = tuple(_partition(entry) for entry in entries if entry[0] != bytes(16))
    faults += [
        f"partition {p.label!r} ends at LBA {p.last} of {size // SECTOR}" for p in found if p.last >= size // SECTOR - 33
    ]
    return (uuid.UUID(bytes_le=disk_guid), found), faults


def _partition(entry: tuple[Any, ...]) -> Partition:
    kind, guid, first, last, _, label = entry
    text = label.decode("utf-16-le", errors="replace").split("\0", 1)[0]
    return Partition(uuid.UUID(bytes_le=kind), uuid.UUID(bytes_le=guid), first, last, text)
