"""Proof that a baked disk does what it claims: a copy of it, and containerd asked on it as kubelet would ask.

The audits are in builder.node.proof. Those of files go first: a running containerd writes files of its own. Every
containerd version gets a fresh copy, because a newer one changes the database that it opens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from builder import process
from builder.errors import BuilderError, ConfigError
from builder.node import containerd, disk, layout, programs, targets, workplace
from builder.node.proof import (
    cri,
    exports,
    files,
    kubelet,
    layers,
    pause,
    references,
    secondary,
    start,
    table,
    virtual,
)
from builder.node.proof.report import RUN_S, ContainerRun, Notes, Opened, VerifyDisk, VerifyPlan, claim
from builder.node.targets import CONTAINERD, Extent, Target
from builder.progress import NoProgress, Progress, step

__all__ = ["RUN_S", "ContainerRun", "Opened", "VerifyDisk", "VerifyPlan", "verify"]


def verify(plan: VerifyPlan, *, progress: Progress | None = None) -> VerifyDisk:
    """Check a copy of the disk; the disk itself is only read.

    Raises ClaimError with every finding, CapabilityError where root, loop devices, programs or space are missing.
    """
    if not plan.disk.is_file():
        raise ConfigError(f"{plan.disk}: no such file")
    disk.need_root("builder bake verify")
    begun, notes, shown = time.monotonic(), Notes(), progress or NoProgress()
    with workplace.terminable():
        workplace.sweep()
        extent = table.locate(plan.disk, notes)
        if extent is None:
            raise claim(plan.disk, notes)
        with _copy(plan, extent, notes, shown) as place:
            record, target, free = _audit(plan, extent, place.mount, notes, shown)
            versions = plan.programs or (programs.find(),) if target.containerd_root else ()
            opened = [_open(plan, one, place, record, notes, shown) for one in versions[:1]]
        for one in versions[1:]:
            with _copy(plan, extent, notes, shown) as place:
                opened.append(_open(plan, one, place, record, notes, shown))
        booted = virtual.boot(plan, target, record, notes, shown) if plan.vm else None
    if notes.findings:
        raise claim(plan.disk, notes)
    return VerifyDisk(plan.disk, target.name, notes.checks, tuple(opened), free, time.monotonic() - begun, booted)


@contextmanager
def _copy(plan: VerifyPlan, extent: Extent, notes: Notes, progress: Progress) -> Iterator[workplace.Workplace]:
    """A copy of the disk, mounted with the options of a node; gone at the end."""
    copy = (plan.scratch or plan.disk.parent) / f"{plan.disk.name}.check"
    with ExitStack() as stack:
        stack.callback(copy.unlink, missing_ok=True)
        place = stack.enter_context(workplace.workplace(copy, temporary=True))
        with step(progress, "bake: copy"):
            disk.need_space(copy.parent, plan.disk.stat().st_blocks * 512)
            process.run(["cp", "--sparse=always", "--reflink=auto", plan.disk, copy])
        device = stack.enter_context(disk.attached(copy, extent))
        try:
            stack.enter_context(disk.mounted(device, place.mount))
        except BuilderError as exc:
            notes.add("file system", "", [f"cannot be mounted: {exc.message}"])
            raise claim(plan.disk, notes) from exc
        yield place


def _audit(plan: VerifyPlan, extent: Extent, root: Path, notes: Notes,
           progress: Progress) -> tuple[dict[str, Any], Target, float]:  # fmt: skip
    """All that needs no containerd. Returns the build record, the target, and the free share."""
    record = files.record(root, notes)
    target = _target(plan, record, extent)
    table.audit(plan.disk, extent, target, notes)
    with step(progress, "bake: labels, blobs, layers, weights"):
        layers.audit(root, record, notes)
        if target.containerd_root:
            files.audit_strays(root, notes)
            files.audit_labels(root, target, notes)
            files.audit_blobs(root, record, notes)
            files.audit_weights(root, record, notes)
            files.audit_compiled(root, record, notes)
        else:
            secondary.audit(root, record, notes)
        exports.audit(plan.disk, target, notes)
    return record, target, files.audit_space(root, target, notes)


def _open(plan: VerifyPlan, version: programs.Programs, place: workplace.Workplace, record: dict[str, Any], notes: Notes,
          progress: Progress) -> Opened:  # fmt: skip
    """What this containerd finds on the copy, and a container of every image that it finds."""
    cri.need_client()
    begun, images, caches = time.monotonic(), record.get("images", []), place.mount / CONTAINERD
    own, runs = notes.of(f"containerd {version.version}: "), list[ContainerRun]()
    order = start.Order(place.mount, place.folder / "logs", plan.run, plan.run_s)
    with step(progress, f"bake: containerd {version.version}, start without pull"):
        with containerd.containerd(caches, place.folder, programs=version) as daemon:
            references.audit_labels(daemon, own)
            whole = [image for image in images if references.audit_image(daemon, image, own) and _native(image, own)]
            if whole:
                pause.add(daemon, place.folder / "pause")
        if whole:
            with (
                containerd.containerd(caches, place.folder, sandbox_image=pause.NAME, programs=version) as daemon,
                cri.connected(daemon.socket) as client,
            ):
                for image in whole:
                    if kubelet.audit(client, image, version.version, own):
                        runs += start.start(client, image, order, own)
    return Opened(version.version, own.checks, tuple(runs), time.monotonic() - begun)


def _native(image: dict[str, Any], notes: Notes) -> bool:
    """Whether this machine's processor runs the image; containerd's CRI plugin passes over those of another."""
    here = layout.host_platform()
    if image["platform"] != here:
        notes.add(f"start {image['reference']}", f"not started: {image['platform']} on {here}", [])
    return bool(image["platform"] == here)


def _target(plan: VerifyPlan, record: dict[str, Any], extent: Extent) -> Target:
    """As asked, as recorded, or else what the disk looks like."""
    guess = "raw" if isinstance(extent, targets.WholeDisk) else targets.BOTTLEROCKET.name
    return targets.target(plan.target or record.get("target") or guess)
