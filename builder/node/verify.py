"""Proof that a baked disk does what it claims: a copy of it, and containerd asked on it as kubelet would ask.

The audits are in builder.node.proof. Those of files go first: a running containerd writes files of its own. Every
containerd version gets a fresh copy, because a newer one changes the database that it opens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, CapabilityError, ConfigError
from builder.node import containerd, disk, gke, layout, programs, targets, workplace
from builder.node.copied import copied
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
from builder.node.vm.plan import VmBoot
from builder.progress import NoProgress, Progress, step

__all__ = ["RUN_S", "ContainerRun", "Opened", "VerifyDisk", "VerifyPlan", "verify"]


def verify(plan: VerifyPlan, *, progress: Progress | None = None) -> VerifyDisk:
    """Check a copy of the disk; the disk itself is only read.

    Raises ClaimError with every finding, CapabilityError where root, loop devices, programs or space are missing.
    """
    if not plan.disk.is_file():
        raise ConfigError(f"{plan.disk}: {'not a file' if plan.disk.exists() else 'no such file'}",
                          hint="name the file that bake disk wrote")  # fmt: skip
    disk.need_root("builder bake verify")
    begun, notes, shown = time.monotonic(), Notes(), progress or NoProgress()
    if plan.vm:
        virtual.ready(plan)
    with workplace.terminable():
        workplace.sweep()
        extent = table.locate(plan.disk, notes)
        if extent is None:
            raise claim(plan.disk, notes)
        with _copy(plan, extent, notes, shown) as place:
            record, target, free = _audit(plan, extent, place.mount, notes, shown)
            versions = _versions(plan, target, notes)
            opened = [_open(plan, one, place, record, notes, shown) for one in versions[:1]]
        for one in versions[1:]:
            with _copy(plan, extent, notes, shown) as place:
                opened.append(_open(plan, one, place, record, notes, shown))
        booted = _boot(plan, target, record, notes, shown) if plan.vm else None
    if notes.findings:
        raise claim(plan.disk, notes)
    return VerifyDisk(plan.disk, target.name, notes.checks, tuple(opened), free, time.monotonic() - begun, booted)


@contextmanager
def _copy(plan: VerifyPlan, extent: Extent, notes: Notes, progress: Progress) -> Iterator[workplace.Workplace]:
    """A copy of the disk, mounted with the options of a node; gone at the end."""
    with ExitStack() as stack:
        place = stack.enter_context(copied(plan.disk, ".check", plan.scratch, progress))
        device = stack.enter_context(disk.attached(place.disk, extent))
        try:
            stack.enter_context(disk.mounted(device, place.mount))
        except BuilderError as exc:
            notes.add("file system", "", [f"cannot be mounted: {exc.message}"])
            raise claim(plan.disk, notes) from exc
        if found := files.links(place.mount):  # nothing more is done on it
            notes.add("strays", "", found)
            raise claim(plan.disk, notes)
        yield place


def _audit(plan: VerifyPlan, extent: Extent, root: Path, notes: Notes,
           progress: Progress) -> tuple[dict[str, Any], Target, float]:  # fmt: skip
    """All that needs no containerd. Returns the build record, the target, and the free share."""
    record = files.record(root, notes)
    target = _target(plan, record, extent)
    table.audit(plan.disk, extent, target, notes)
    of_root: dict[str, Callable[[], None]] = {
        "strays": lambda: files.audit_strays(root, notes),
        "SELinux labels": lambda: files.audit_labels(root, target, notes),
        "content": lambda: files.audit_blobs(root, record, notes),
        "weights": lambda: files.audit_weights(root, record, notes),
        "compile caches": lambda: files.audit_compiled(root, record, notes),
    }
    of_lists: dict[str, Callable[[], None]] = {gke.LAYERS: lambda: secondary.audit(root, record, notes)}
    with step(progress, "bake: labels, blobs, layers, weights"):
        with _told("unpacked layers", notes, root):
            layers.audit(root, record, notes)
        for check, audit in (of_root if target.containerd_root else of_lists).items():
            with _told(check, notes, root):
                audit()
        exports.audit(plan.disk, target, notes)
    return record, target, files.audit_space(root, target, notes)


def _open(plan: VerifyPlan, version: programs.Programs, place: workplace.Workplace, record: dict[str, Any], notes: Notes,
          progress: Progress) -> Opened:  # fmt: skip
    """What this containerd finds on the copy, and a container of every image that it finds."""
    begun, images, caches = time.monotonic(), record.get("images", []), place.mount / CONTAINERD
    own, runs = notes.of(f"containerd {version.version}: "), list[ContainerRun]()
    order = start.Order(place.mount, place.folder / "logs", plan.run, plan.run_s)
    with step(progress, f"bake: containerd {version.version}, start without pull"), _blamed(place, version, own):
        cri.need_client()
        with containerd.containerd(caches, place.folder, programs=version) as daemon:
            references.audit_labels(daemon, images, own)
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


@contextmanager
def _told(check: str, notes: Notes, root: Path = Path("/")) -> Iterator[None]:
    """What the file system refuses to give is a finding, and hides no other. What this machine lacks is one beside others.

    root: where the disk is mounted, which is left out of names.
    """
    try:
        yield
    except OSError as exc:
        name = str(exc.filename or "the disk").removeprefix(str(root))
        notes.add(check, "", [f"{name}: {exc.strerror or exc}"])
    except CapabilityError as exc:
        if not notes.findings:
            raise
        notes.add(check, "", [exc.message])


@contextmanager
def _blamed(place: workplace.Workplace, version: programs.Programs, notes: Notes) -> Iterator[None]:
    """A containerd that fails on the disk is a finding: unless it does so on an empty folder too, which is this machine's
    fault, and raised."""
    with _told("containerd", notes, place.mount):
        try:
            yield
        except CapabilityError:
            raise
        except BuilderError as exc:
            with containerd.containerd(place.folder / "empty", place.folder, sandbox_image=pause.NAME, programs=version):
                notes.add("containerd", "", [exc.message])


def _versions(plan: VerifyPlan, target: Target, notes: Notes) -> tuple[programs.Programs, ...]:
    """Those asked for, or the one of this machine; none for a disk that holds no containerd root."""
    if not target.containerd_root:
        return ()
    with _told("containerd", notes):
        return plan.programs or (programs.find(),)
    return ()


def _boot(plan: VerifyPlan, target: Target, record: dict[str, Any], notes: Notes, progress: Progress) -> VmBoot | None:
    try:
        return virtual.boot(plan, target, record, notes, progress)
    except BuilderError as exc:  # no machine, or none in time: said after what was found before
        if not notes.findings:
            raise
        notes.add(virtual.CHECK, "", [exc.message])
        return None


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
