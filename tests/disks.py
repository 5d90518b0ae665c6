"""Baked disks in tests: opened, copied, and whether anything of them stays on the machine."""

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


def leftovers(base: Path) -> list[str]:
    """Loop devices, mounts, processes and folders of disks below `base`; other runs may be at work beside this one."""
    loops = subprocess.check_output(["losetup", "-n", "-O", "BACK-FILE"], text=True).split("\n")
    alive = {p for p in workplace.RUN.glob("*/") if f'"{base}' not in _read(p / "record.json")}
    lines = subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines()
    found = [str(p) for p in workplace.mounts_under(workplace.RUN)] + [line for line in lines if f"{workplace.RUN}/" in line]
    found += [str(p) for p in workplace.RUN.glob("*")]
    return [line for line in loops if str(base) in line] + [f for f in found if not any(str(p) in f for p in alive)]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
