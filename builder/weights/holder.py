"""Who holds a lease, written into it: for messages, and so that a killed process of this very machine is known to be gone.

A process is dead for certain only where that can be seen: same host name, same boot of the kernel, same process namespace,
and there no such process (or a younger one under its number). In all other cases its lease must run out.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from builder.errors import printable

MAX_BYTES = 4096  # of a lease object; a larger one is not ours


@dataclass(frozen=True)
class Holder:
    """host, pid: where it runs.  since: UTC, as text.  machine: the boot and the process namespace, or "" where unknown.

    born: the process's start in clock ticks since the boot, or "".
    """

    host: str = "?"
    pid: int = 0
    since: str = "?"
    machine: str = ""
    born: str = ""

    def __str__(self) -> str:
        return printable(f"process {self.pid} on {self.host}, since {self.since}")

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    def is_dead(self) -> bool:
        """True only where it is certain."""
        here = me()
        if not self.machine or (self.host, self.machine) != (here.host, here.machine):
            return False
        try:
            os.kill(self.pid, 0)  # unlike a look into /proc, true for processes of other users under hidepid as well
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        born = _born(self.pid)
        return bool(born and self.born and born != self.born)


def me() -> Holder:
    """This process."""
    pid = os.getpid()
    since = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
    return Holder(socket.gethostname(), pid, since, _machine(), _born(pid))


def read(body: bytes) -> Holder:
    """The holder that a lease names; an unknown one where the lease is not understood."""
    try:
        raw = json.loads(body)
        texts = {name: str(raw[name])[:200] for name in ("host", "since", "machine", "born")}
        pid = int(raw["pid"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return Holder()
    return Holder(pid=pid, **texts) if pid > 0 else Holder()


def _machine() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return ""


def _born(pid: int) -> str:
    """Field 22 of /proc/<pid>/stat (proc(5)); the name in field 2 may hold spaces and brackets."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
