"""A private copy of a disk to work on: the disk itself is only read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder import process
from builder.errors import ConfigError
from builder.node import disk, workplace
from builder.progress import Progress, step


@contextmanager
def copied(path: Path, suffix: str, folder: Path | None, progress: Progress) -> Iterator[workplace.Workplace]:
    """A workplace whose disk is a sparse copy of `path`, called as it is and `suffix`; both are gone at the end.

    folder: for the copy, default the disk's own. Raises CapabilityError if another process works on such a copy or space is
    missing, ConfigError if a file of that name is there: whose it is cannot be known, so it is neither written nor removed.
    """
    copy = (folder or path.parent) / f"{path.name}{suffix}"
    with workplace.workplace(copy):  # nobody works on it, and what a killed process left is gone: so it is not ours
        if copy.exists() or copy.is_symlink():
            raise ConfigError(f"{copy}: is there already, and a copy of the disk needs the name",
                              hint="move it away; remove it if it is of a check before the machine started anew")  # fmt: skip
    with workplace.workplace(copy, temporary=True) as place:
        with step(progress, "bake: copy"):
            disk.need_space(copy.parent, path.stat().st_blocks * 512)
            process.run(["cp", "--sparse=always", "--reflink=auto", path, copy])
        yield place
