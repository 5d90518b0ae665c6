"""What to boot, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.node.programs import Programs

TIMEOUT_S = 900.0  # bounds a hang only: a boot takes 14 s of two free cores, and a busy machine is many times slower
RUN_S = 300.0
MEMORY_MIB = 1536  # 120 MiB of it are the programs in the initial RAM disk; containerd and one container need about 200


@dataclass(frozen=True, slots=True)
class VmCommand:
    """One container to start. reference: `repository@sha256:...`, as a pod would name it. argv: the whole command."""

    reference: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VmPlan:
    """A baked disk and what to start from it. The disk is only read.

    target: what the disk was baked for; decides how it is found and mounted (builder.node.vm.volumes).
    kernel: a bzImage, or None for the newest usable one on this machine (builder.node.vm.kernel).
    programs: the containerd that runs in the machine, None for the installed one.
    timeout_s: for the whole boot. run_s: for one container.
    selinux: under an enforcing policy that models Bottlerocket's rules; also tries to write into a cached layer.
    console: where the machine's console is kept, also after a failure; None keeps the end of it in the error only.
    scratch: folder for the initial RAM disk (about 120 MiB), default the system's folder for temporary files.
    """

    disk: Path
    commands: tuple[VmCommand, ...] = ()
    target: str = "bottlerocket"
    kernel: Path | None = None
    programs: Programs | None = None
    memory_mib: int = MEMORY_MIB
    timeout_s: float = TIMEOUT_S
    run_s: float = RUN_S
    selinux: bool = False
    console: Path | None = None
    scratch: Path | None = None


@dataclass(frozen=True, slots=True)
class VmRun:
    """One container that ran. user: `uid:gid` the runtime was given. seconds: from the order until its exit.

    output: the end of what it said.
    """

    reference: str
    argv: tuple[str, ...]
    user: str
    exit: int
    seconds: float
    output: str

    def to_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "argv": list(self.argv),
            "user": self.user,
            "exit": self.exit,
            "seconds": round(self.seconds, 3),
            "output": self.output,
        }


@dataclass(frozen=True, slots=True)
class VmBoot:
    """What was seen.

    kernel: version. device: what the volume was found by, `PARTLABEL=BOTTLEROCKET-DATA`. containerd: version.
    images: references that containerd listed, each pinned and managed.
    selinux: empty, or the container's context and what became of the attempts to write.
    seconds: kernel, mount, containerd, container, total. The first four are the machine's own clock, total is ours.
    """

    kernel: str
    device: str
    filesystem: str
    containerd: str
    images: tuple[str, ...]
    runs: tuple[VmRun, ...]
    selinux: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    console: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel,
            "device": self.device,
            "filesystem": self.filesystem,
            "containerd": self.containerd,
            "images": list(self.images),
            "runs": [run.to_json() for run in self.runs],
            "selinux": self.selinux,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "console": str(self.console) if self.console else None,
        }
