"""The further forms of a disk that lie beside it: a fixed VHD is the disk and a footer, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from builder.node import vhd
from builder.node.proof.report import Notes
from builder.node.targets import Target

_CHUNK = 4 << 20
_FIXED = 2


def audit(disk: Path, target: Target, notes: Notes) -> None:
    """OUT.vhd, where the target has one and it is there."""
    path = disk.with_name(disk.name + ".vhd")
    if ".vhd" not in target.exports:
        return
    if not path.is_file():
        notes.add("VHD", f"{path.name} is not here, only the raw disk was checked", [])
        return
    size = disk.stat().st_size
    findings = footer_faults(path, size)
    differs = next(_differences(disk, path, size), None) if path.stat().st_size >= size else None
    findings += [] if differs is None else [f"{path.name} differs from the disk at byte {differs} or soon after"]
    notes.add("VHD", f"{path.name}: the disk, byte for byte, and its footer", findings)


def footer_faults(path: Path, size: int) -> list[str]:
    """What is wrong with the footer of a VHD of a disk of `size` bytes. Source: see builder.node.vhd."""
    whole = path.stat().st_size
    if whole != size + vhd.FOOTER.size:
        return [f"{path.name} has {whole} bytes, expected {size + vhd.FOOTER.size}"]
    with path.open("rb") as stream:
        stream.seek(size)
        raw = stream.read(vhd.FOOTER.size)
    cookie, *_, original, current, _, _, _, kind, checksum, _, _ = vhd.FOOTER.unpack(raw)
    plain = raw[:64] + bytes(4) + raw[68:]
    expected = {
        "cookie": (cookie, b"conectix"),
        "disk type": (kind, _FIXED),
        "original size": (original, size),
        "current size": (current, size),
        "checksum": (checksum, ~sum(plain) & 0xFFFF_FFFF),
    }
    return [f"footer: {name} is {is_!r}, expected {should!r}" for name, (is_, should) in expected.items() if is_ != should]


def _differences(one: Path, other: Path, size: int) -> Iterator[int]:
    """Where two files differ within `size` bytes, to a few MiB; what is a hole in both is not read."""
    with one.open("rb") as left, other.open("rb") as right:
        for start, end in sorted({*_data(left.fileno(), size), *_data(right.fileno(), size)}):
            for offset in range(start, end, _CHUNK):
                length = min(_CHUNK, end - offset)
                if os.pread(left.fileno(), length, offset) != os.pread(right.fileno(), length, offset):
                    yield offset


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The extents that may hold something."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole follows
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < size:
            yield start, end
