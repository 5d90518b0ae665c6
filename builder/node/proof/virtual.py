"""The disk booted in a virtual machine: what a kernel finds on it by itself (builder.node.vm)."""

from __future__ import annotations

from typing import Any

from builder.errors import ClaimError
from builder.node.layout import host_platform
from builder.node.proof.references import by_digest
from builder.node.proof.report import Notes, VerifyPlan
from builder.node.proof.start import command
from builder.node.targets import Target
from builder.node.vm.plan import RUN_S, TIMEOUT_S, VmBoot, VmCommand, VmPlan
from builder.progress import Progress

CHECK = "virtual machine"


def ready(plan: VerifyPlan) -> None:
    """Raises CapabilityError, ConfigError where a boot would lack a program or its kernel: known before the work, not after."""
    from builder.node.vm import boot as machine

    machine.need(plan.kernel, selinux=plan.selinux)


def boot(plan: VerifyPlan, target: Target, record: dict[str, Any], notes: Notes, progress: Progress) -> VmBoot | None:
    """What came of the boot; None, with findings, if it is not as claimed. Images for another processor are left out."""
    from builder.node.vm import boot as machine

    native = [image for image in record.get("images", []) if image["platform"] == host_platform()]
    asked = [(image, command(image, plan.run)) for image in native]
    run_s = max(RUN_S, plan.run_s)  # an emulated processor is many times slower than the one that the limit is meant for
    commands = [VmCommand(by_digest(image), (*image["entrypoint"], *some)) for image, some in asked if some is not None]
    order = VmPlan(
        plan.disk,
        commands=tuple(commands),
        target=target.name,
        kernel=plan.kernel,
        programs=plan.programs[0] if plan.programs else None,
        timeout_s=TIMEOUT_S + len(commands) * run_s,
        run_s=run_s,
        selinux=plan.selinux,
        console=plan.console,
        scratch=plan.scratch,
    )
    try:
        booted = machine.boot(order, progress=progress)
    except ClaimError as exc:
        notes.add(CHECK, "", [exc.message])
        return None
    ran = f"{len(booted.runs)} of {len(native)} started"
    notes.add(CHECK, f"Linux {booted.kernel}, {booted.device} mounted as {booted.filesystem}, {ran}", [])
    return booted
