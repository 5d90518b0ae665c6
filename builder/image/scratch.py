"""Where a build keeps what is in between: an archive as large as the image, its folder, files with secrets.

On a disk: an archive of 4 GB has no place in memory, and /tmp is memory on many systems (Debian since 13). So it is TMPDIR
where the user set one, else /var/tmp, which is for large files (FHS 3.0, 5.15; podman and buildah use it too), else /tmp.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "builder-image-"
DEFAULT = "/tmp"
LARGE = Path("/var/tmp")
YOUNG_S = 600  # a folder is made and then locked; nobody looks at it in between


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder that only this user can read, gone afterwards. Those that killed runs have left are removed too."""
    root = place()
    _sweep(root)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=root) as work:
        lock = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(work)
        finally:
            os.close(lock)


def place() -> Path:
    """The folder for large temporary files."""
    chosen = Path(tempfile.gettempdir())
    return LARGE if str(chosen) == DEFAULT and os.access(LARGE, os.W_OK) else chosen


def _sweep(root: Path) -> None:
    """Remove what no running process holds: the lock goes with its process, however that ended."""
    for path in root.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if found.st_uid != os.geteuid() or time.time() - found.st_mtime < YOUNG_S:
                continue
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(held)
