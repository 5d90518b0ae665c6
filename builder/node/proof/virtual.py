"""The disk booted in a virtual machine: what a kernel finds on it by itself (builder.node.vm)."""

from __future__ import annotations

from typing import Any

from builder.errors import ClaimError
from builder.node.layout import host_platform
from builder.node.proof.references import by_digest
from builder.node.proof.report import Notes, VerifyPlan
from builder.node.proof.start import command
from builder.node.targets import Target
from builder.node.vm.plan import TIMEOUT_S, VmBoot, VmCommand, VmPlan
from builder.progress import Progress

CHECK = "virtual machine"


def boot(plan: VerifyPlan, target: Target, record: dict[str, Any], notes: Notes, progress: Progress) -> VmBoot | None:
    """What came of the boot; None, with findings, if it is not as claimed. Images for another processor are left out."""
    from builder.node.vm import boot as machine

    native = [image for image in record.get("images", []) if image["platform"] == host_platform()]
    asked = [(image, command(image, plan.run)) for image in native]
    commands = [VmCommand(by_digest(image), (*image["entrypoint"], *some)) for image, some in asked if some is not None]
    order = VmPlan(
        plan.disk,
        commands=tuple(commands),
        target=target.name,
        kernel=plan.kernel,
        programs=plan.programs[0] if plan.programs else None,
        timeout_s=max(TIMEOUT_S, 2 * plan.run_s),
        run_s=plan.run_s,
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
