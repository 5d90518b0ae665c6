"""The containerd to bake or check with: found on this machine, or given by path. Any version from 1.6 on.

The client `ctr` and the shim must be of the same build, so they are taken from beside containerd where they lie there.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.errors import CapabilityError

OLDEST, BEYOND = (1, 6), (3, 0)
_SHIM = "containerd-shim-runc-v2"


@dataclass(frozen=True, slots=True)
class Programs:
    """containerd, ctr: executables. version: such as `1.7.24`."""

    containerd: Path
    ctr: Path
    version: str

    def with_path(self, *first: Path) -> list[str]:
        """Begins a command line whose program finds the shim of this build before others, and runc on the rest of PATH.

        first: folders that come before all.
        """
        path = [*map(str, first), str(self.containerd.parent), *os.get_exec_path(), "/usr/sbin", "/sbin"]
        return [str(process.need("env", "coreutils")), "PATH=" + os.pathsep.join(path)]


def find(given: Path | None = None) -> Programs:
    """The programs of `given`, a containerd executable or the folder that it lies in; without it, those of this machine.

    Raises CapabilityError if one is missing, or is not of version 1.6 to 2.x.
    """
    if given is None:
        containerd = process.need("containerd")
    else:
        containerd = given / "containerd" if given.is_dir() else given
        if not (containerd.is_file() and os.access(containerd, os.X_OK)):
            raise CapabilityError(f"{containerd}: no such program", hint="give the path of a containerd executable")
    ctr = containerd.with_name("ctr")
    if not ctr.is_file():
        ctr = process.need("ctr", "containerd")
    if not containerd.with_name(_SHIM).is_file() and process.which(_SHIM) is None:
        raise CapabilityError(f"{containerd.with_name(_SHIM)}: program not found", hint="install the whole of containerd")
    return Programs(containerd.absolute(), ctr.absolute(), _version(containerd))


def gunzip(folder: Path) -> list[Path]:
    """Folders to put first in containerd's PATH so that it unpacks gzip by igzip, in a third of zlib's CPU time.

    containerd looks for `unpigz` and, from 2.1 on, for igzip first. [] where the machine has no igzip. What was unpacked is
    compared with the image's configuration in any case.
    """
    igzip = process.which("igzip")
    if igzip is None:
        return []
    folder.mkdir(exist_ok=True)
    link = folder / "unpigz"
    link.unlink(missing_ok=True)
    link.symlink_to(igzip)
    return [folder]


def _version(containerd: Path) -> str:
    said = process.run([containerd, "--version"]).stdout.decode(errors="replace")
    match = re.search(r"\bv?(\d+)\.(\d+)\.(\d+)", said)
    if not match or not OLDEST <= (int(match[1]), int(match[2])) < BEYOND:
        raise CapabilityError(f"{containerd}: version is {said.strip()!r}, expected 1.6 to 2.x",
                              hint="give another with --containerd, or install containerd 1.7 or newer")  # fmt: skip
    return ".".join(match.groups())
