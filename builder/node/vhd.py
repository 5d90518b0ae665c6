"""A raw disk as a fixed VHD, the one form that Azure makes a managed disk from: the disk, and a footer of 512 bytes.

Azure asks for a virtual size of whole MiB; ours are whole GiB. The raw disk stays as it is, for `bake verify`; the VHD is a
copy of the parts that hold something (a reflink where the file system has them).
Format: Microsoft, Virtual Hard Disk Image Format Specification, version 1.0, "Hard Disk Footer Format" and "CHS Calculation".
"""

from __future__ import annotations

import os
import struct
import time
import uuid
from pathlib import Path

from builder import process

FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")  # 512 bytes
_CHECKSUM_AT = 64
_EPOCH = 946_684_800  # 2000-01-01 00:00 UTC, from which VHD counts seconds
_FIXED, _RESERVED_BIT, _VERSION = 2, 2, 0x0001_0000
# Readers that know other creators take the size out of the geometry, which cannot express every size; of this one they take the
# size itself (QEMU block/vpc.c).
_CREATOR, _HOST = b"win ", b"Wi2k"


def footer(size: int, *, created: float, identity: uuid.UUID) -> bytes:
    """The footer of a disk of `size` bytes. created: seconds since 1970."""
    fields = [b"conectix", _RESERVED_BIT, _VERSION, 2**64 - 1, int(created) - _EPOCH, _CREATOR, _VERSION, _HOST, size, size,
              *geometry(size // 512), _FIXED, 0, identity.bytes, 0]  # fmt: skip
    plain = FOOTER.pack(*fields)
    checksum = ~sum(plain) & 0xFFFF_FFFF
    return plain[:_CHECKSUM_AT] + checksum.to_bytes(4, "big") + plain[_CHECKSUM_AT + 4 :]


def geometry(sectors: int) -> tuple[int, int, int]:
    """(cylinders, heads, sectors per track) for a disk of that many sectors."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    track = 17
    heads = max(4, -(-(sectors // track) // 1024))
    if sectors // track >= heads * 1024 or heads > 16:
        track, heads = 31, 16
    if sectors // track >= heads * 1024:
        track, heads = 63, 16
    return sectors // track // heads, heads, track


def write(disk: Path, out: Path) -> None:
    """The raw `disk` as the VHD `out`."""
    size = disk.stat().st_size
    process.run(["cp", "--sparse=always", "--reflink=auto", disk, out])
    with out.open("r+b") as stream:
        stream.seek(size)
        stream.write(footer(size, created=time.time(), identity=uuid.uuid4()))
        stream.flush()
        os.fsync(stream.fileno())
