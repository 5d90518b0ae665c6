"""Fixed VHDs, against the one that QEMU makes and reads."""

from __future__ import annotations

import struct
import subprocess
import uuid
from pathlib import Path

import pytest

from builder import process
from builder.node import vhd
from tests.conftest import missing

GIB = 1 << 30
CREATED = 946_684_800 + 1000


@pytest.fixture
def qemu_img() -> Path:
    found = process.which("qemu-img")
    if found is None:
        missing("qemu-img", "qemu-img is not installed")
    assert found is not None
    return found


def test_the_footer_says_what_the_specification_asks() -> None:
    body = vhd.footer(GIB, created=CREATED, identity=uuid.UUID(int=7))
    assert len(body) == 512
    cookie, features, version, offset, stamp = struct.unpack_from(">8sIIQI", body)
    assert (cookie, features, version, offset, stamp) == (b"conectix", 2, 0x10000, 2**64 - 1, 1000)
    original, current, cylinders, heads, sectors, kind, checksum = struct.unpack_from(">QQHBBII", body, 40)
    assert (original, current, kind) == (GIB, GIB, 2)
    assert 0 <= GIB // 512 - cylinders * heads * sectors < heads * sectors
    assert checksum == ~sum(body[:64] + bytes(4) + body[68:]) & 0xFFFFFFFF
    assert body[68:84] == uuid.UUID(int=7).bytes
    assert not any(body[84:])


@pytest.mark.parametrize("gib", [1, 2, 120, 500, 4096])
def test_no_disk_is_too_large_for_its_geometry(gib: int) -> None:
    cylinders, heads, sectors = vhd.geometry(gib * GIB // 512)
    assert (0 < cylinders < 1 << 16, heads <= 16, sectors <= 255) == (True, True, True)
    assert cylinders * heads * sectors <= gib * GIB // 512
    if gib >= 128:  # beyond what 16 heads of 255 sectors express
        assert (cylinders, heads, sectors) == (65535, 16, 255)


def test_it_is_the_vhd_that_qemu_makes(qemu_img: Path, tmp_path: Path) -> None:
    """The same bytes but for who made it, when, its identity, and the geometry, for which QEMU writes the largest one."""
    raw = tmp_path / "d.img"
    with raw.open("wb") as out:
        out.truncate(GIB)
        for at in (0, 12345, GIB // 2, GIB - 700):
            out.seek(at)
            out.write(b"written" * 100)
    ours, theirs = tmp_path / "ours.vhd", tmp_path / "theirs.vhd"
    vhd.write(raw, ours)
    options = ["-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on"]
    subprocess.run([qemu_img, "convert", *options, raw, theirs], check=True)
    a, b = tail(ours), tail(theirs)
    for span in (slice(0, 24), slice(40, 56), slice(60, 64), slice(84, 512)):  # cookie to offset; sizes; type; state and rest
        assert a[span] == b[span]
    assert ours.stat().st_size == theirs.stat().st_size == GIB + 512
    assert ours.stat().st_blocks * 512 < 8 << 20  # sparse
    subprocess.run([qemu_img, "compare", "-f", "raw", "-F", "vpc", raw, ours], check=True)
    said = subprocess.run([qemu_img, "info", "-f", "vpc", ours], check=True, capture_output=True, text=True).stdout
    assert f"({GIB} bytes)" in said


def tail(path: Path) -> bytes:
    with path.open("rb") as stream:
        stream.seek(-512, 2)
        return stream.read()
