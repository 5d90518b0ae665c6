"""The programs of the machine: busybox, and containerd's own with the libraries that they are linked against here."""

from __future__ import annotations

import re
from pathlib import Path

from builder import process
from builder.errors import CapabilityError
from builder.node.programs import Programs
from builder.node.vm.initrd import Entry
from builder.node.vm.kernel import Kernel, read

APPLETS = (
    "base64", "cat", "chroot", "dd", "dmesg", "echo", "findfs", "grep", "head", "insmod", "mkdir", "mount", "poweroff",
    "sed", "sh", "sleep", "stty", "sync", "tail", "timeout", "tr", "umount",
)  # fmt: skip


SHIM = "containerd-shim-runc-v2"


def entries(found: Programs, kernel: Kernel) -> dict[str, Entry]:
    """Files of the machine, less its init. Raises CapabilityError that names the package of a missing program."""
    files = {"bin/busybox": Entry(source=busybox(), mode=0o755)}
    files |= {f"bin/{name}": Entry(link="busybox") for name in APPLETS}
    for name, path in programs(found).items():
        files[f"usr/bin/{name}"] = Entry(source=path, mode=0o755)
        files |= {str(library).lstrip("/"): Entry(source=library, mode=0o755) for library in libraries(path)}
    for number, path in enumerate(kernel.modules):  # init loads them in the order of their names
        files[f"modules/{number:03}-{path.name.split('.ko')[0]}.ko"] = Entry(body=read(path))
    return files


def programs(found: Programs) -> dict[str, Path]:
    """containerd, its client, its shim and runc."""
    beside = found.containerd.with_name(SHIM)
    return {
        "containerd": found.containerd,
        "ctr": found.ctr,
        SHIM: beside if beside.is_file() else process.need(SHIM, "containerd"),
        "runc": process.need("runc"),
    }


def libraries(program: Path) -> list[Path]:
    """Shared libraries and the loader of a program, as ldd resolves them; none for a static one."""
    done = process.run([process.need("ldd", "libc-bin"), program], check=False)
    said = done.stdout.decode(errors="replace")
    missing = re.findall(r"(\S+) => not found", said)
    if missing:
        raise CapabilityError(f"{program}: needs {', '.join(missing)}, which this machine lacks", hint="install that library")
    return [Path(match) for match in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE)]


def busybox() -> Path:
    """busybox without libraries. The name in PATH may be the dynamic one of Debian's package `busybox`."""
    found = process.need("busybox", "busybox-static")
    if libraries(found):
        raise CapabilityError(
            f"{found}: linked against libraries, expected a static busybox", hint="apt-get install busybox-static"
        )
    return found
