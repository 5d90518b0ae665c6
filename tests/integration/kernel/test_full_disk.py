"""A disk that is full, on a real, tiny file system: said plainly, nothing visible, and a rerun finishes."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import CapabilityError
from builder.format.manifest import Chunk, File
from builder.transfer.check import check_folder
from builder.transfer.restore import restore
from tests.unit.transfer.build import DictSource, Model, model, random_model

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root")]


@contextlib.contextmanager
def mounted(source: list[str], at: Path) -> Iterator[Path]:
    at.mkdir()
    subprocess.run(["mount", *source, str(at)], check=True, capture_output=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True, capture_output=True)


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system with 4 MiB."""
    if request.param == "tmpfs":
        options = ["-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs"]
    else:
        image = tmp_path / "disk.img"
        image.touch()
        os.truncate(image, 4 << 20)
        subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", image], check=True)
        options = ["-o", "loop", str(image)]
    with mounted(options, tmp_path / "disk") as at:
        yield at


def fill(disk: Path) -> Path:
    """A file that takes every free byte."""
    path = disk / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return path


def visible(disk: Path) -> list[str]:
    return sorted(p.name for p in disk.iterdir() if not p.name.startswith(".") and p.name != "lost+found")


def test_too_little_space_is_said_before_the_first_read(disk: Path) -> None:
    built = random_model(files=1, size=5 << 20, chunk_bytes=1 << 20)
    source = DictSource(built.objects)
    with pytest.raises(CapabilityError, match="bytes needed") as caught:
        restore(built.manifest, source, disk / "m")
    assert "free" in caught.value.hint
    assert source.reads == []
    assert visible(disk) == []


def test_a_disk_that_fills_up_midway_keeps_what_is_there(disk: Path) -> None:
    """The blocks of the model are reserved, so what no longer fits is the journal and the record."""
    built: Model = model({"w.safetensors": os.urandom(1 << 20)}, chunk_bytes=1 << 10)
    filler: list[Path] = []

    def on_chunk(file: File, chunk: Chunk) -> None:
        if not filler:
            filler.append(fill(disk))

    source = DictSource(built.objects)
    with pytest.raises(CapabilityError, match="No space left") as caught:
        restore(built.manifest, source, disk / "m", on_chunk=on_chunk, concurrency=1)
    assert caught.value.exit_code == 4
    assert "run again" in caught.value.hint
    assert visible(disk) == ["filler"]
    filler[0].unlink()
    again = DictSource(built.objects)
    report = restore(built.manifest, again, disk / "m")
    assert report.reused_bytes > 0
    assert len(again.reads) < 1024
    assert built.same(disk / "m")
    assert check_folder(disk / "m", deep=True) == []


def test_no_inodes_left_is_the_same_failure(tmp_path: Path) -> None:
    built = model({f"f{n}.bin": b"x" for n in range(30)})
    with mounted(["-t", "tmpfs", "-o", "size=4m,nr_inodes=12", "tmpfs"], tmp_path / "disk") as disk:
        with pytest.raises(CapabilityError, match="No space left"):
            restore(built.manifest, DictSource(built.objects), disk / "m")
        assert visible(disk) == []


def test_a_read_only_disk_is_named(tmp_path: Path) -> None:
    built = random_model()
    with (
        mounted(["-t", "tmpfs", "-o", "ro", "tmpfs"], tmp_path / "disk") as disk,
        pytest.raises(CapabilityError, match="Read-only file system"),
    ):
        restore(built.manifest, DictSource(built.objects), disk / "sub/m")


def test_a_complete_model_on_a_read_only_disk_is_found(tmp_path: Path) -> None:
    built = random_model()
    with mounted(["-t", "tmpfs", "-o", "size=4m", "tmpfs"], tmp_path / "disk") as disk:
        restore(built.manifest, DictSource(built.objects), disk / "m")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert restore(built.manifest, DictSource({}), disk / "m").fetched_chunks == 0


def test_a_mount_point_is_refused_with_a_way_out(tmp_path: Path) -> None:
    built = random_model()
    with mounted(["-t", "tmpfs", "-o", "size=4m", "tmpfs"], tmp_path / "disk") as disk:
        with pytest.raises(CapabilityError, match="mount point") as caught:
            restore(built.manifest, DictSource(built.objects), disk)
        assert "below it" in caught.value.hint
