"""QEMU, as an emulator of a PC: no hardware virtualisation, no network card, no display, disks that are only read.

Hardware virtualisation is left alone on purpose: where /dev/kvm exists inside a virtual machine it may accept a guest and
then not run it. Emulation gives the same answer everywhere. One processor: a second one made a boot on two busy cores slower
(64 and 82 s against 25 and 70 s), and once its kernel waited for it for ever.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from builder import process

POLL_S = 0.05
LEAVE_S = 5.0  # to power off after the last word


@dataclass(frozen=True, slots=True)
class Ended:
    """complete: the machine said its last word. late: it was ended at the time limit. errors: what QEMU itself said."""

    complete: bool
    late: bool
    errors: str


@dataclass(frozen=True, slots=True)
class Machine:
    """kernel, initrd, disk: files. append: kernel command line. console, report: files for its two serial ports."""

    kernel: Path
    initrd: Path
    disk: Path
    append: str
    console: Path
    report: Path
    memory_mib: int

    def argv(self) -> list[str | Path]:
        return [
            # A parent killed by SIGKILL cannot clean up; the kernel then ends the machine.
            process.need("setpriv", "util-linux"), "--pdeathsig", "KILL",
            process.need("qemu-system-x86_64", "qemu-system-x86"),
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none", "-nic", "none",
            "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", str(self.memory_mib),
            "-serial", f"file:{_quoted(self.console)}", "-serial", f"file:{_quoted(self.report)}",
            "-kernel", self.kernel, "-initrd", self.initrd, "-append", self.append,
            # snapshot=on: what the machine writes goes to a nameless temporary file; the disk is opened for reading.
            "-drive", f"file={_quoted(self.disk)},format=raw,if=virtio,snapshot=on",
        ]  # fmt: skip


def run(machine: Machine, *, timeout_s: float, last: str, watch: Callable[[str], None]) -> Ended:
    """Run the machine until its report holds the line `last`, it ends, or the time is up; then it is gone.

    watch is called with the report so far whenever it has grown. Ctrl-C ends the machine too.
    """
    errors = machine.console.with_name("qemu.log")
    machine.report.touch()
    with errors.open("wb") as out:
        # An own session: Ctrl-C goes to this process alone, which ends the machine.
        child = subprocess.Popen(machine.argv(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        complete, late = _follow(child, machine.report, time.monotonic() + timeout_s, last, watch)
    finally:
        child.kill()
        child.wait()
    return Ended(complete, late, errors.read_text(errors="replace").strip())


def _follow(child: subprocess.Popen[bytes], report: Path, deadline: float, last: str,
            watch: Callable[[str], None]) -> tuple[bool, bool]:  # fmt: skip
    """(complete, late)."""
    seen = ""
    while True:
        gone = child.poll() is not None  # asked first, so that its last words are read
        said = report.read_text(errors="replace")
        if said != seen:
            watch(seen := said)
        if last in said.split():
            _wait_off(child)
            return True, False
        if gone:
            return False, False
        if time.monotonic() > deadline:
            return False, True
        time.sleep(POLL_S)


def _wait_off(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(LEAVE_S)
    except subprocess.TimeoutExpired:
        return


def _quoted(path: Path) -> str:
    """A comma begins the next option, so QEMU wants it doubled."""
    return str(path.absolute()).replace(",", ",,")
