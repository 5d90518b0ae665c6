"""Disks as sparse archives, read back by GNU tar and by gzip."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from builder import process
from builder.node import archive

MIB = 1 << 20


def disk(path: Path, size: int, pieces: int, seed: int) -> Path:
    """A sparse file with random bytes at random places, zeros among them."""
    chance = random.Random(seed)
    with path.open("wb") as out:
        out.truncate(size)
        for _ in range(pieces):
            out.seek(chance.randrange(size - 5000))
            out.write(chance.choice([chance.randbytes(chance.randrange(1, 5000)), bytes(5000)]))
    return path


@pytest.mark.parametrize("pigz", [True, False])
@pytest.mark.parametrize(("size", "pieces"), [(8 * MIB, 0), (8 * MIB, 3), (64 * MIB, 400), (9 << 30, 40)])
def test_gnu_tar_restores_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, pieces: int, pigz: bool) -> None:
    """None, few and many extents; a disk whose offsets pass eight GiB, where octal digits end."""
    if not pigz:
        monkeypatch.setattr(process, "which", lambda program: None)
    elif process.which("pigz") is None:
        pytest.skip("pigz is not installed")
    raw, out = disk(tmp_path / "d.img", size, pieces, seed=size + pieces), tmp_path / "d.tar.gz"
    archive.write(raw, out)
    subprocess.run(["tar", "-xzf", out, "-C", tmp_path], check=True)
    subprocess.run(["cmp", raw, tmp_path / "disk.raw"], check=True) if size < 1 << 30 else same(raw, tmp_path / "disk.raw")
    listed = subprocess.run(["tar", "-tvzf", out], check=True, capture_output=True, text=True).stdout.split()
    assert (listed[1], listed[2], listed[-1]) == ("0/0", str(size), "disk.raw")
    assert out.stat().st_size < 4 * MIB
    subprocess.run(["gzip", "--test", out], check=True)


def same(a: Path, b: Path) -> None:
    """As cmp, without reading nine GiB of holes twice."""
    assert a.stat().st_size == b.stat().st_size
    assert archive.extents(a) == archive.extents(b)
    with a.open("rb") as left, b.open("rb") as right:
        for offset, size in archive.extents(a):
            left.seek(offset)
            right.seek(offset)
            assert left.read(size) == right.read(size)


def test_gnu_tar_writes_the_same_kind_of_header(tmp_path: Path) -> None:
    """`tar --format=oldgnu -S`: magic, type and sizes are where ours are."""
    raw = disk(tmp_path / "disk.raw", 64 * MIB, 3, seed=5)
    theirs = subprocess.run(["tar", "--format=oldgnu", "-S", "-C", tmp_path, "-cf", "-", "disk.raw"], check=True,
                            capture_output=True).stdout  # fmt: skip
    ours = archive.header(64 * MIB, archive.extents(raw))
    assert ours[257:265] == theirs[257:265] == b"ustar  \0"
    assert ours[156:157] == theirs[156:157] == b"S"
    assert ours[483:495] == theirs[483:495]
