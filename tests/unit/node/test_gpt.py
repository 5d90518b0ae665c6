"""The partition table: golden bytes, round trip, and every kind of damage named."""

from __future__ import annotations

import hashlib
import subprocess
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder import process
from builder.errors import IntegrityError
from builder.node import gpt
from builder.node.targets import BOTTLEROCKET
from tests.conftest import missing

DISK = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
TABLE = BOTTLEROCKET.table
assert TABLE is not None
SIZE = 1 << 30


def partition(size: int) -> gpt.Partition:
    found = BOTTLEROCKET.partition(size)
    assert found is not None
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as out:
        out.truncate(SIZE)
    gpt.write(path, DISK, partition(SIZE))
    return path


def test_the_bytes_are_those_that_sgdisk_writes() -> None:
    """Compared once with sgdisk 1.0.9 (`-n 0:1M:... -t -u -c -U`): both ends were equal, byte for byte."""
    head, tail = gpt.encode(SIZE, DISK, partition(SIZE))
    assert (len(head), len(tail)) == (34 * 512, 33 * 512)
    assert head[512:520] == b"EFI PART"
    # The type GUID as it lies on disk: the first three groups little endian.
    assert head[1024:1040].hex() == uuid.UUID(TABLE.type_guid).bytes_le.hex()
    assert head[1024 + 56 : 1024 + 56 + 34] == "BOTTLEROCKET-DATA".encode("utf-16-le")
    assert hashlib.sha256(head + tail).hexdigest() == GOLDEN


GOLDEN = "281f2b717146b454a0e8509f67c386303b6dabe33c0650d6989b916f79b41c61"


def test_sgdisk_finds_no_problem(disk: Path) -> None:
    if process.which("sgdisk") is None:
        missing("root", "sgdisk is not installed (scripts/system)")
    said = subprocess.run([process.need("sgdisk"), "--verify", disk], capture_output=True, text=True, check=True).stdout
    assert "No problems found" in said


def test_a_sound_table_reads_back(disk: Path) -> None:
    table = gpt.read(disk)
    assert table.faults == ()
    assert table.disk_guid == DISK
    (part,) = table.partitions
    assert (part.label, str(part.type_guid), str(part.guid)) == (
        "BOTTLEROCKET-DATA",
        TABLE.type_guid,
        TABLE.guid,
    )
    assert (part.offset, part.size) == (1 << 20, SIZE - (2 << 20))


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (512 + 60, "primary header at LBA 1: CRC32"),
        (1024 + 60, "primary entries at LBA 2: CRC32"),
        (SIZE - 512 + 20, "backup header at LBA 2097151: CRC32"),
        (SIZE - 512 * 33 + 60, "backup entries at LBA 2097119: CRC32"),
        (510, "no protective MBR"),
    ],
)
def test_damage_of_one_copy_is_a_fault(disk: Path, at: int, says: str) -> None:
    _flip(disk, at)
    table = gpt.read(disk)
    assert [fault for fault in table.faults if says in fault], table.faults
    assert table.partitions[0].label == "BOTTLEROCKET-DATA"


def test_damage_of_both_copies_is_refused(disk: Path) -> None:
    _flip(disk, 512 + 60)
    _flip(disk, SIZE - 512 + 60)
    with pytest.raises(IntegrityError, match=r"primary header at LBA 1.*\n.*backup header at LBA 2097151"):
        gpt.read(disk)


def test_copies_that_differ_are_a_fault(disk: Path) -> None:
    other, _ = gpt.encode(SIZE, uuid.UUID(int=1), partition(SIZE))
    with disk.open("r+b") as out:
        out.write(other)
    assert gpt.read(disk).faults == ("primary and backup table differ",)


@given(mib=st.integers(3, 1 << 24))
def test_the_partition_leaves_a_mebibyte_at_either_end(mib: int) -> None:
    part = partition(mib << 20)
    assert part.offset == 1 << 20
    assert part.offset + part.size == (mib - 1) << 20


@pytest.mark.parametrize("size", [0, 2 << 20, (3 << 20) + 512])
def test_a_size_that_is_not_whole_mebibytes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="whole MiB"):
        partition(size)


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as disk:
        disk.seek(at)
        byte = disk.read(1)[0]
        disk.seek(at)
        disk.write(bytes([byte ^ 0xFF]))
