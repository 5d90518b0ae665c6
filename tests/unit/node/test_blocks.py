"""The scan finds exactly the blocks that hold something, however the file was made sparse."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from builder.node.blocks import BLOCK, scan

writes = st.lists(
    st.tuples(st.integers(0, 40 * BLOCK), st.integers(1, 3 * BLOCK), st.booleans()), max_size=8
)  # offset, length, zeros or not


@settings(max_examples=40, deadline=None)
@given(writes=writes, tail=st.integers(0, BLOCK))
def test_the_map_rebuilds_the_disk(writes: list[tuple[int, int, bool]], tail: int) -> None:
    size = 40 * BLOCK + tail
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "disk"
        with path.open("wb") as disk:
            disk.truncate(size)
            for offset, length, zero in writes:
                disk.seek(offset)
                disk.write((b"\0" if zero else b"\x5a") * max(0, min(length, size - offset)))
        whole = path.read_bytes()
        found = scan(path)
        rebuilt = bytearray(size)
        for index in found.blocks:
            rebuilt[index * BLOCK : (index + 1) * BLOCK] = whole[index * BLOCK : (index + 1) * BLOCK]
        assert bytes(rebuilt) == whole  # nothing is missed
        assert all(any(whole[i * BLOCK : (i + 1) * BLOCK]) for i in found.blocks)  # nothing is there in vain
        assert list(found.blocks) == sorted(set(found.blocks))
        dense = Path(folder) / "dense"
        dense.write_bytes(whole)  # the same bytes, without holes
        assert scan(dense) == found


def test_the_hash_covers_place_and_content(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as disk:
        disk.truncate(3 * BLOCK + 7)
        disk.seek(3 * BLOCK)
        disk.write(b"end")
    found = scan(path)
    assert (found.blocks, found.nonzero_bytes, found.size) == ((3,), BLOCK, 3 * BLOCK + 7)
    block = b"end".ljust(BLOCK, b"\0")
    assert found.sha256 == hashlib.sha256((3).to_bytes(8, "big") + hashlib.sha256(block).digest()).hexdigest()


def test_a_huge_empty_disk_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as disk:
        disk.truncate(500 << 30)  # reading it would take minutes
    assert scan(path).blocks == ()
