"""The boot of a baked disk, from the plan to what was seen."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from builder import process, render
from builder.errors import BuilderError, CapabilityError, ClaimError, ConfigError
from builder.node import containerd, programs, targets, workplace
from builder.node.vm import initrd, kernel, qemu, report, selinux, userland, volumes
from builder.node.vm.initrd import Entry
from builder.node.vm.plan import VmBoot, VmPlan
from builder.progress import NoProgress, Progress, step

SHOWN = 12  # lines of the console in an error
SECTOR = 512
APPEND = "console=ttyS0 panic=-1 quiet"


def boot(plan: VmPlan, *, progress: Progress | None = None) -> VmBoot:
    """Start the disk in a virtual machine without network, and the containers of the plan from it.

    The disk is only read. No root is needed. When this returns or raises, Ctrl-C included, the machine is gone.
    Raises ClaimError with every finding and the end of the console, CapabilityError where QEMU, a kernel, busybox or
    containerd is missing or the time is up, ConfigError for a disk, kernel or target that cannot be booted.
    """
    begun = time.monotonic()
    volume = _check(plan)
    linux, runtime = kernel.find(plan.kernel), plan.programs or programs.find()
    with workplace.terminable(), ExitStack() as stack:
        workplace.sweep(_run_folder())
        # What is named here a later clean-up may remove, if this process is killed: never the baked disk.
        ram_disk = stack.enter_context(_new_file(plan.scratch or Path(tempfile.gettempdir())))
        place = stack.enter_context(workplace.workplace(ram_disk, temporary=True, run=_run_folder()))
        told = stack.enter_context(step(progress or NoProgress(), "bake: virtual machine"))
        told.note("initial RAM disk")
        initrd.write(ram_disk, _files(plan, volume, userland.entries(runtime, linux), place))
        machine = qemu.Machine(
            kernel=linux.image,
            initrd=ram_disk,
            disk=plan.disk,
            append=APPEND + (selinux.APPEND if plan.selinux else ""),
            console=place.folder / "console.log",
            report=place.folder / "report",
            memory_mib=plan.memory_mib,
        )
        if plan.console:
            stack.callback(_keep, machine.console, plan.console)
        ended = qemu.run(machine, timeout_s=plan.timeout_s, last=report.LAST,
                         watch=lambda said: told.note(report.parse(said, plan.commands).step))  # fmt: skip
        seen = report.parse(_read(machine.report), plan.commands)
        _judge(plan, ended, seen, _read(machine.console))
    return VmBoot(
        kernel=linux.version,
        device=volume.tag,
        filesystem=seen.filesystem,
        containerd=runtime.version,
        images=tuple(seen.images),
        runs=tuple(seen.runs),
        selinux=seen.probe,
        seconds={**seen.seconds(), "total": time.monotonic() - begun},
        console=plan.console,
    )


def need(linux: Path | None, *, selinux: bool) -> None:
    """Raises CapabilityError, ConfigError if a boot with this kernel, None for the newest here, would lack something."""
    kernel.find(linux)
    userland.busybox()
    for program, package in (("qemu-system-x86_64", "qemu-system-x86"), *([("secilc", "secilc")] if selinux else [])):
        process.need(program, package)


def _check(plan: VmPlan) -> volumes.Volume:
    """How the volume is found. Raises for what cannot be booted at all."""
    target = targets.target(plan.target)
    volume = volumes.volume_of(target)
    if plan.selinux:
        selinux.check(target, len(plan.commands))
    if not plan.disk.is_file():
        raise ConfigError(f"{plan.disk}: no such file")
    size = plan.disk.stat().st_size
    if size == 0 or size % SECTOR:
        raise ConfigError(
            f"{plan.disk}: {size} bytes, expected a raw disk of whole sectors", hint="name the disk that bake wrote"
        )
    if platform.machine() != "x86_64":  # the programs of this machine run in the virtual one
        raise CapabilityError(
            f"this machine is {platform.machine()}; disks are booted on x86_64 only", hint="verify without --vm"
        )
    return volume


def _files(plan: VmPlan, volume: volumes.Volume, programs_: dict[str, Entry], place: workplace.Workplace) -> dict[str, Entry]:
    """The initial RAM disk: programs, what this boot is to do, and containerd's configuration, which is a node's."""
    script = render.text(
        "node/vm/init.sh.j2",
        volume=volume,
        commands=plan.commands,
        models=targets.MODELS,
        trees=selinux.trees(),
        run_s=max(1, round(plan.run_s)),
        selinux=selinux.CONTEXTS if plan.selinux else None,
    )
    socket = Path("/run/containerd/containerd.sock")
    settings = containerd.config(Path("/", targets.CONTAINERD), Path("/run/containerd"), socket, cri=True)
    labelling = selinux.entries(userland.busybox(), place.folder) if plan.selinux else {}
    orders = {"init": Entry(body=script.encode(), mode=0o755), "etc/containerd.toml": Entry(body=settings.encode())}
    return programs_ | labelling | orders


def _judge(plan: VmPlan, ended: qemu.Ended, seen: report.Report, console: str) -> None:
    """Raises unless the machine did all that the plan says."""
    tail = [line for line in console.replace("\r", "").splitlines() if line.strip()][-SHOWN:]
    shown = "".join(f"\n  | {line}" for line in tail)
    where = {"console": tail, "step": seen.step}
    if ended.late:
        said = f"{plan.disk}: the virtual machine was not done after {plan.timeout_s:.0f} s; it was at: {seen.step}{shown}"
        raise CapabilityError(said, hint="allow more time, or let the machine do less besides", where=where)
    if not ended.complete and not seen.marks:
        said = f": {ended.errors}" if ended.errors else ""
        raise BuilderError(f"{plan.disk}: the virtual machine did not come to its first process{said}{shown}",
                           hint="name another kernel with --kernel", where=where)  # fmt: skip
    if ended.complete:
        found = report.findings(seen, plan.commands, run_s=plan.run_s)
        found += selinux.findings(seen.probe) if plan.selinux and not found else []
    else:
        found = [f"the machine died at: {seen.step}"]
    if found:
        lines = "".join(f"\n  {finding}" for finding in found)
        raise ClaimError(f"{plan.disk}: {len(found)} findings in the virtual machine:{lines}{shown}",
                         hint="bake the disk again", where={"findings": found, **where})  # fmt: skip


@contextmanager
def _new_file(folder: Path) -> Iterator[Path]:
    """An empty file with a name that nobody can foresee: the folder may be one where others write."""
    handle, name = tempfile.mkstemp(prefix="builder-", suffix=".initrd", dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _run_folder() -> Path:
    """Where work is locked and found by a later clean-up; not root's folder for those who may not write there."""
    user = os.geteuid()
    return private(Path(tempfile.gettempdir(), f"builder-{user}"), user) if user else workplace.RUN


def private(folder: Path, user: int) -> Path:
    """The folder, made if need be. What lies there says which files a clean-up removes, so it must be of `user` alone.

    Raises CapabilityError if another user made it, or may write there.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077:
        said = f"{stat.filemode(found.st_mode)} of user {found.st_uid}, expected drwx------ of user {user}"
        raise CapabilityError(f"{folder}: {said}", hint="set TMPDIR to a folder of your own")
    return folder


def _keep(console: Path, where: Path) -> None:
    if console.is_file():
        shutil.copyfile(console, where)


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
