"""The programs of the machine: busybox, and containerd's own with the libraries that they are linked against here."""

from __future__ import annotations

import re
from pathlib import Path

from builder import process
from builder.errors import CapabilityError
from builder.node.vm.initrd import Entry
from builder.node.vm.kernel import Kernel, read
from builder.node.vm.plan import VmPlan

APPLETS = (
    "base64", "cat", "chmod", "cut", "dd", "dmesg", "echo", "findfs", "grep", "head", "insmod", "ls", "mkdir", "mount", "poweroff",
    "rm", "sed", "sh", "sleep", "stty", "sync", "tail", "timeout", "tr", "umount", "wc",
)  # fmt: skip


def entries(plan: VmPlan, kernel: Kernel) -> dict[str, Entry]:
    """Files of the machine, less its init. Raises CapabilityError that names the package of a missing program."""
    found = {"bin/busybox": Entry(source=_static_busybox(), mode=0o755)}
    found |= {f"bin/{name}": Entry(link="busybox") for name in APPLETS}
    for name, path in programs(plan).items():
        found[f"usr/bin/{name}"] = Entry(source=path, mode=0o755)
        found |= {str(library).lstrip("/"): Entry(source=library, mode=0o755) for library in libraries(path)}
    for number, path in enumerate(kernel.modules):  # init loads them in the order of their names
        found[f"modules/{number:03}-{path.name.split('.ko')[0]}.ko"] = Entry(body=read(path))
    return found


def programs(plan: VmPlan) -> dict[str, Path]:
    """containerd, its client, its shim and runc."""
    return {
        "containerd": plan.containerd or process.need("containerd"),
        "ctr": plan.ctr or process.need("ctr", "containerd"),
        "containerd-shim-runc-v2": plan.shim or process.need("containerd-shim-runc-v2", "containerd"),
        "runc": plan.runc or process.need("runc"),
    }


def libraries(program: Path) -> list[Path]:
    """Shared libraries and the loader of a program, as ldd resolves them; none for a static one."""
    done = process.run([process.need("ldd", "libc-bin"), program], check=False)
    said = done.stdout.decode(errors="replace")
    missing = re.findall(r"(\S+) => not found", said)
    if missing:
        raise CapabilityError(f"{program}: needs {', '.join(missing)}, which this machine lacks", hint="install that library")
    return [Path(match) for match in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE)]


def _static_busybox() -> Path:
    """busybox without libraries. The name in PATH may be the dynamic one of Debian's package `busybox`."""
    found = process.need("busybox", "busybox-static")
    if libraries(found):
        raise CapabilityError(f"{found}: linked against libraries, expected a static busybox", hint="apt-get install busybox-static")
    return found
