"""What a proof is asked and what it says: plan, notes taken on the way, report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.errors import ClaimError
from builder.node.programs import Programs
from builder.node.vm.plan import VmBoot

RUN_S = 120.0
SHOWN = 5
START = "start "  # begins the name of a check that starts a container; the image's reference follows


@dataclass(frozen=True, slots=True)
class VerifyPlan:
    """disk: the file. run: arguments for the image's entry point, or None for the default of `command`.

    run_s: seconds each container may take. scratch: folder of the copy, default the disk's own.
    target: what the disk is for; "" takes the build record's word. programs: the containerd versions that must each start
    the images, every one on a copy of its own; none means the one of this machine.
    vm: also boot the disk in a virtual machine; kernel, selinux and console as builder.node.vm.plan has them.
    """

    disk: Path
    run: tuple[str, ...] | None = None
    run_s: float = RUN_S
    scratch: Path | None = None
    target: str = ""
    programs: tuple[Programs, ...] = ()
    vm: bool = False
    kernel: Path | None = None
    selinux: bool = False
    console: Path | None = None


@dataclass(frozen=True, slots=True)
class ContainerRun:
    """One container started from the disk.

    arguments: the whole command. user: `uid:gid` of its first process. seconds: from the order of the pod until the
    container's exit. output: the end of what it said.
    """

    reference: str
    arguments: tuple[str, ...]
    user: str
    seconds: float
    output: str

    def to_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "arguments": list(self.arguments),
            "user": self.user,
            "seconds": round(self.seconds, 3),
            "output": self.output,
        }


@dataclass(frozen=True, slots=True)
class Opened:
    """What one containerd version made of the disk. version: such as `1.7.24`. checks: name to one line of evidence."""

    version: str
    checks: dict[str, str]
    runs: tuple[ContainerRun, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "checks": self.checks,
            "runs": [run.to_json() for run in self.runs],
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class VerifyDisk:
    """What was seen. checks: of the disk and its files, name to one line of evidence. opened: one per containerd version.

    free: share of the volume, 0 to 1. booted: None where no virtual machine was asked for.
    """

    path: Path
    target: str
    checks: dict[str, str]
    opened: tuple[Opened, ...]
    free: float
    seconds: float
    booted: VmBoot | None = None

    @property
    def runs(self) -> tuple[ContainerRun, ...]:
        """Every container that was started, in order."""
        return tuple(run for one in self.opened for run in one.runs)

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "target": self.target,
            "checks": self.checks,
            "containerds": [one.to_json() for one in self.opened],
            "free": round(self.free, 4),
            "vm": self.booted.to_json() if self.booted else None,
            "seconds": round(self.seconds, 3),
        }


@dataclass
class Notes:
    """What the checks say while they go. prefix: of every finding. failed: names of the checks that have findings."""

    checks: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    prefix: str = ""
    failed: set[str] = field(default_factory=set)

    def add(self, name: str, evidence: str, findings: list[str]) -> None:
        """The outcome of the check `name`: what it saw, or else what is wrong, each finding a line."""
        self.findings += [f"{self.prefix}{name}: {text}" for text in findings]
        if findings:
            self.failed.add(name)
        else:
            self.checks[name] = evidence

    def of(self, prefix: str) -> Notes:
        """Notes with checks of their own, whose findings are added to these."""
        return Notes(findings=self.findings, prefix=prefix, failed=self.failed)


def claim(path: Path, notes: Notes) -> ClaimError:
    """Every finding in one error."""
    found = len(notes.findings)
    lines = "".join(f"\n  {finding}" for finding in notes.findings)
    started = all(name.startswith(START) for name in notes.failed)  # the rest is sound: the same disk would come out again
    hint = "give the entry point what ends with status 0: --run ARGS" if started else "bake the disk again"
    return ClaimError(
        f"{path}: {found} finding{'s' if found != 1 else ''}:{lines}", hint=hint, where={"findings": notes.findings}
    )


def first(findings: list[str]) -> list[str]:
    """The first few, and how many more there are: a disk without any label has one fault, not ten thousand."""
    rest = len(findings) - SHOWN
    return [*findings[:SHOWN], f"and {rest} more"] if rest > 0 else findings
