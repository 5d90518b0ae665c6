"""One start on a fresh mount of a copy, and what it read.

Cold by construction: the copy gets a loop device and a mount of its own, whose caches begin empty. What counts is everything
from the mount to the container's end: superblock, journal, inodes, containerd's database and blobs, layers, weights. Read-ahead
of the kernel is in it, as it will be on the node.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError
from builder.node import blocks, containerd, disk, gpt, layout, workplace
from builder.node.copied import copied
from builder.node.hot import touched, trace
from builder.node.hot.hotlist import RESIDENT, TRACED, HotFile, HotList, in_order
from builder.node.programs import Programs, find
from builder.node.proof import files
from builder.node.proof.report import Notes
from builder.node.targets import CONTAINERD, MODELS, TARGETS, Extent, WholeDisk
from builder.progress import NoProgress, Progress, step
from builder.units import format_seconds

START_S = 600.0
UNTOUCHED = f"{disk.OPTIONS},ro,norecovery"  # the journal stays where it is, so that the start finds it as the node does
METHODS = {"trace": TRACED, "page-cache": RESIDENT}


@dataclass(frozen=True, slots=True)
class HotPlan:
    """disk: the file. run: arguments for each image's entry point, None for its own command line.

    images: references to start, () for all. seconds: end the container after so long, what it read till then counts; None: it
    must end by itself, with 0. method: a key of METHODS. scratch: folder of the copy, default the disk's own.
    """

    disk: Path
    run: tuple[str, ...] | None = None
    images: tuple[str, ...] = ()
    seconds: float | None = None
    method: str = "trace"
    scratch: Path | None = None
    programs: Programs | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """target: of the record. reads: (first byte, bytes) within the file system, in order."""

    target: str
    images: tuple[str, ...]
    reads: tuple[tuple[int, int], ...]
    files: tuple[HotFile, ...]


def hot(plan: HotPlan, *, progress: Progress | None = None) -> HotList:
    """The blocks that starting the images of `plan.disk` reads; the disk itself is only read.

    Raises ConfigError (no such disk or image, nothing to start on it), IntegrityError (it cannot be mounted), CapabilityError
    (root, loop devices, tracing, space), BuilderError (the container failed). Nothing is left behind, as with a bake.
    """
    disk.need_root("builder bake hot")
    if not plan.disk.is_file():
        raise ConfigError(f"{plan.disk}: {'not a file' if plan.disk.exists() else 'no such file'}",
                          hint="name the file that bake disk wrote")  # fmt: skip
    shown = progress or NoProgress()
    part = extent(plan.disk)
    with workplace.terminable():
        workplace.sweep()
        with step(shown, "bake: scan blocks"):
            found = blocks.scan(plan.disk)
        with ExitStack() as stack:
            place = stack.enter_context(copied(plan.disk, ".hot", plan.scratch, shown))
            with disk.attached(place.disk, part) as device, _mounted(device, place.mount, plan.disk, UNTOUCHED) as root:
                record = _record(root, plan.disk)  # on a mount of its own: what is read here, no start reads
            device = stack.enter_context(disk.attached(place.disk, part))
            seen = _watch(plan, place, device, record, shown)
    indices = in_order(seen.reads, part.offset, frozenset(found.blocks))
    return HotList(found.sha256, found.size, part.offset, len(found.blocks), seen.target, seen.images, METHODS[plan.method],
                   indices, seen.files)  # fmt: skip


def extent(path: Path) -> Extent:
    """Where the file system lies on the disk: in its only partition, or from its first byte where there is no table.

    Raises IntegrityError for a damaged table, and one with several partitions.
    """
    with path.open("rb") as raw:
        head = raw.read(2 * gpt.SECTOR)
    if head[gpt.SECTOR : gpt.SECTOR + 8] != b"EFI PART":
        return WholeDisk(path.stat().st_size)
    table = gpt.read(path)
    if len(table.partitions) != 1 or table.partitions[0].offset % blocks.BLOCK:
        raise IntegrityError(f"{path}: {len(table.partitions)} partitions; expected one that begins with a block of 512 KiB")
    return table.partitions[0]


def _watch(plan: HotPlan, place: workplace.Workplace, device: Path, record: dict[str, Any], progress: Progress) -> _Seen:
    chosen = _chosen(record, plan)
    with ExitStack() as stack:
        tracer = None
        if plan.method == "trace":
            tracer = stack.enter_context(trace.traced(device, place.folder / "tracing", place.folder.name))
        root = stack.enter_context(_mounted(device, place.mount, plan.disk))
        with step(progress, "bake: start") as told:
            limit = f"for {format_seconds(plan.seconds)}" if plan.seconds else f"{format_seconds(START_S)} at most"
            told.note(f"until it ends, {limit}")
            _start_all(chosen, plan, place)
        with step(progress, "bake: blocks and files"):
            if tracer:
                tracer.stop()
                reads = [(one.start, one.size) for one in tracer.reads()]
                files = touched.files(root, reads)
            else:
                reads, files = touched.resident_files(root)
    names = tuple(image["reference"] for image in chosen)
    return _Seen(record["target"], names, tuple(reads), tuple(files))


@contextmanager
def _mounted(device: Path, point: Path, path: Path, options: str = disk.OPTIONS) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            root = stack.enter_context(disk.mounted(device, point, options=options))
        except BuilderError as exc:
            raise IntegrityError(
                f"{path}: cannot be mounted: {exc.message}", hint="builder bake verify DISK says more"
            ) from exc
        yield root


def _record(root: Path, path: Path) -> dict[str, Any]:
    if found := files.links(root):
        raise IntegrityError(f"{path}: {found[0]}", hint="bake the disk again")
    notes = Notes()
    raw = files.record(root, notes)
    if notes.findings:
        raise ConfigError(f"{path}: no build record: {notes.findings[0]}",
                          hint="expected a disk that builder baked, with containerd's store on it")  # fmt: skip
    if not raw["images"] or not (root / CONTAINERD).is_dir():
        raise ConfigError(f"{path}: no image on it to start")
    if raw.get("target") not in TARGETS:
        known = ", ".join(TARGETS)
        raise ConfigError(f"{path}: its build record has the target {raw.get('target')!r}, expected one of {known}",
                          hint="bake the disk again")  # fmt: skip
    return raw


def _chosen(record: dict[str, Any], plan: HotPlan) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = record["images"]
    by_name = {image["reference"]: image for image in images}
    wanted = [layout.normalise(name) for name in plan.images] or list(by_name)
    missing = [name for name in wanted if name not in by_name]
    if missing:
        raise ConfigError(f"{missing[0]}: not on the disk, which holds {', '.join(by_name)}")
    here = layout.host_platform()
    for name in wanted:
        if (platform := by_name[name]["platform"]) != here:
            raise CapabilityError(
                f"{name}: for {platform}, and this machine is {here}", hint="trace the start on such a machine"
            )
    return [by_name[name] for name in wanted]


def _start_all(images: list[dict[str, Any]], plan: HotPlan, place: workplace.Workplace) -> None:
    caches = place.mount / CONTAINERD
    with containerd.containerd(caches, place.folder, cri=True, programs=plan.programs or find()) as daemon:
        for image in images:
            _start(daemon, image, plan, place)


def _start(daemon: containerd.Containerd, image: dict[str, Any], plan: HotPlan, place: workplace.Workplace) -> None:
    """By digest and without a network, as a pod that names the digest is started; weights where the runtime looks for them."""
    argv = (*image["entrypoint"], *plan.run) if plan.run is not None else ()  # ctr run replaces all where anything is given
    models = place.mount / MODELS
    bound = ["--mount", f"type=bind,src={models},dst=/{MODELS},options=rbind:ro"] if models.is_dir() else []
    name, begun = f"{image['reference'].rsplit(':', 1)[0]}@{image['digest']}", time.monotonic()
    try:
        daemon.ctr("run", "--rm", *bound, name, place.container, *argv, timeout_s=plan.seconds or START_S)
    except BuilderError as exc:
        daemon.end(place.container)
        if plan.seconds is None or time.monotonic() - begun < plan.seconds:
            hint = "" if plan.seconds else "a server does not end by itself: --seconds 120, or --run ARGS"
            raise BuilderError(f"{image['reference']}: {exc.message}", hint=exc.hint or hint) from exc
