"""What a bake or a check may leave behind: nothing."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from builder.node import workplace


def leftovers(base: Path) -> list[str]:
    """Loop devices, mounts, processes and folders of disks below `base` that stay. Other runs may be at work beside this one,
    and begin and end while this looks: what a second look does not see was theirs."""
    found = _look(base)
    if not found:
        return []
    time.sleep(1.0)
    return [one for one in _look(base) if one in found]


def _look(base: Path) -> list[str]:
    before = _others(base)
    loops = subprocess.check_output(["losetup", "-n", "-O", "BACK-FILE"], text=True).split("\n")
    lines = subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines()
    found = [str(p) for p in workplace.mounts_under(workplace.RUN)] + [line for line in lines if f"{workplace.RUN}/" in line]
    found += [str(p) for p in workplace.RUN.glob("*")]
    alive = before | _others(base)
    return [line for line in loops if str(base) in line] + [f for f in found if not any(str(p) in f for p in alive)]


def _others(base: Path) -> set[Path]:
    """Workplaces of other runs."""
    return {p for p in workplace.RUN.glob("*/") if f'"{base}' not in _read(p / "record.json")}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
