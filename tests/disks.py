"""Baked disks in tests: opened and copied."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.node import disk, gpt, workplace
from builder.node.targets import BOTTLEROCKET, Target

SIZE = 1 << 30
NAME = "registry.example.com/llm/tiny:v1"
RUN = ("/bin/sh", "-c", "id -u; cat /opt/app/data.txt")


@contextmanager
def opened(path: Path, target: Target = BOTTLEROCKET) -> Iterator[Path]:
    """The file system of the disk, mounted."""
    extent = gpt.read(path).partitions[0] if target.table else target.extent(path.stat().st_size)
    with workplace.workplace(path) as place, disk.attached(path, extent) as device, disk.mounted(device, place.mount) as root:
        yield root


def copy_of(path: Path, folder: Path) -> Path:
    """A sparse copy to damage."""
    subprocess.run(["cp", "--sparse=always", path, folder / "copy.img"], check=True)
    return folder / "copy.img"
