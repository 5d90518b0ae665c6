"""The proof of a disk, asked for by `bake disk` and `bake verify`, and how it is shown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from builder.cli.common import Session
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.node.inputs import ImageInput
    from builder.node.verify import Opened, VerifyDisk
    from builder.node.vm.plan import VmBoot


SHORT = 20


@dataclass(frozen=True, slots=True)
class Ask:
    """What the command line says of the proof. run: `arguments`. containerds: executables or their folders."""

    run: tuple[str, ...] | None = None
    run_s: float | None = None
    target: str = ""
    containerds: tuple[Path, ...] = ()
    vm: bool = False
    kernel: Path | None = None
    selinux: bool = False
    console: Path | None = None


def ready() -> None:
    """Raises CapabilityError where a proof would lack its client: known before a bake, not after it."""
    from builder.node.proof.cri import need_client

    need_client()


def startable(images: Sequence[ImageInput], platform: str, ask: Ask) -> None:
    """Raises ConfigError for an image of which nobody says what the proof shall run: told before a bake, not after it."""
    from builder.node.images import open_images
    from builder.node.layout import host_platform
    from builder.node.proof.start import command

    with ExitStack() as stack:
        found = [one.image for one in open_images(stack, images, platform)]
    for image in found:
        if image.platform == host_platform() and command(image.to_json(), ask.run) is None:
            said = shlex.join(image.entrypoint)
            raise ConfigError(f"{image.reference}: its entry point, {said}, is not known to end by itself",
                              hint="say what the proof gives to it, such as --run --version; or --no-verify")  # fmt: skip


def arguments(text: str | None) -> tuple[str, ...] | None:
    """The words of --run, quoted as in a shell. Raises ConfigError for a quotation mark without its fellow."""
    try:
        return tuple(shlex.split(text)) if text is not None else None
    except ValueError as exc:
        raise ConfigError(f"--run: {text!r}: {str(exc).lower()}", hint="quote it for two shells: --run '-c \"a b\"'") from exc


def verified(session: Session, path: Path, ask: Ask) -> VerifyDisk:
    """The report. Raises ClaimError with every finding."""
    from builder import pipeline
    from builder.node.programs import find
    from builder.node.verify import RUN_S, VerifyPlan

    plan = VerifyPlan(
        path,
        run=ask.run,
        run_s=ask.run_s or RUN_S,
        target=ask.target,
        programs=tuple(find(one) for one in ask.containerds),
        vm=ask.vm,
        kernel=ask.kernel,
        selinux=ask.selinux,
        console=ask.console,
    )
    return pipeline.prove_volume(plan, progress=session.progress)


def evidence(report: VerifyDisk) -> str:
    """For people: what was checked and what was seen, the disk first, then every containerd, then the virtual machine."""
    from builder.units import format_seconds

    lines = [f"{report.path}: sound as {report.target}, checked in {format_seconds(report.seconds)}", *_rows(report.checks)]
    for one in report.opened:
        lines += _version(one)
    return "\n".join([*lines, *(_machine(report.booted) if report.booted else [])])


def _version(one: Opened) -> list[str]:
    from builder.units import format_seconds

    runs = [_ran(run.arguments, run.user, run.seconds, run.output) for run in one.runs]
    return [f"containerd {one.version}, in {format_seconds(one.seconds)}", *_rows(one.checks), *runs]


def _machine(booted: VmBoot) -> list[str]:
    from builder.units import format_seconds

    steps = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in booted.seconds.items())
    lines = [f"virtual machine, Linux {booted.kernel}: {steps}"]
    lines += [f"  ok  {name}: {text}" for name, text in booted.selinux.items()]
    return lines + [_ran(run.argv, run.user, run.seconds, run.output) for run in booted.runs]


def _ran(argv: tuple[str, ...], user: str, seconds: float, output: str) -> str:
    """One run, and the last line of what it said."""
    from builder.errors import printable
    from builder.units import format_seconds

    last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    shown = f"\n      {printable(last[:100])}" if last else ""
    return f"  {shlex.join(argv)} as {user} in {format_seconds(seconds)}{shown}"


def _rows(checks: dict[str, str]) -> list[str]:
    """Short names as a column; a name that holds an image's reference has a line of its own."""
    short = [len(name) for name in checks if len(name) <= SHORT]
    width = max(short, default=0)
    parts = {name: f"{name.ljust(width)}  " if len(name) <= SHORT else f"{name}\n      " for name in checks}
    return [f"  ok  {parts[name]}{text}" for name, text in checks.items()]
