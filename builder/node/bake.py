"""A node's data volume as a disk file: images unpacked, labelled and pinned, small weights beside them.

Needs root, loop devices and containerd; no cloud instance, no registry. The steps are those of `_fill`, in order.
Nothing half-made is visible: the work happens in OUT.partial, which is renamed at the end.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import __version__
from builder.node import archive, blocks, containerd, disk, faults, gke, gpt, lent, plan, vhd, volume, workplace
from builder.node.baked import DataVolume
from builder.node.images import open_images
from builder.node.layout import Descriptor, OciImage
from builder.node.plan import BakePlan, beside
from builder.node.programs import find
from builder.node.stopwatch import Stopwatch, Task
from builder.node.targets import CONTAINERD, MODELS
from builder.progress import NoProgress, Progress

__all__ = ["BakePlan", "DataVolume", "bake"]

Fill = Callable[[Path], dict[str, Any]]  # root of the new file system to the build record
_EXPORT = {".vhd": vhd.write, ".tar.gz": archive.write}


@dataclass(frozen=True, slots=True)
class _Job:
    """One bake under way."""

    plan: BakePlan
    place: workplace.Workplace
    scene: faults.Scene
    watch: Stopwatch


def bake(order: BakePlan, *, progress: Progress | None = None) -> DataVolume:
    """Make the disk `order.out`.

    Raises ConfigError (plan, layout, a disk too small), CapabilityError (root, loop devices, programs, space), IntegrityError
    (a blob, a layer or a weights folder is not what its digest says). After any of them, and after
    Ctrl-C, nothing is left behind.
    """
    plan.check(order)
    disk.need_root("builder bake")
    watch, forms = Stopwatch(progress or NoProgress()), [beside(order.out, form) for form in order.exports]
    halves = tuple(beside(path.absolute(), ".partial") for path in forms)
    with workplace.terminable(), ExitStack() as stack:
        cleaned = workplace.sweep()
        place = workplace.workplace(order.partial, tree=order.tree, files=halves, temporary=True)
        job = _Job(order, stack.enter_context(place), faults.Scene(order), watch)
        plan.check_places(order)  # again, now that nobody else makes it
        job.scene.opened += open_images(stack, order.images, order.platform)
        disk.need_space(order.out.parent, plan.estimate(order, job.scene.opened))
        with faults.explained(job.scene):
            order.partial.unlink(missing_ok=True)  # from before a reboot, which emptied /run
            disk.create(order.partial, order.size)
            make = _in_tree if order.tree else _on_loop
            record = make(job, lambda root: _fill(job, root))
            with watch("scan blocks"):
                found = blocks.scan(order.partial)
            for form, half in zip(order.exports, halves, strict=True):
                with watch(f"write {form.lstrip('.')}"):
                    _EXPORT[form](order.partial, half)
        for stale in (beside(order.out, form) for form in order.target.exports if form not in order.exports):
            stale.unlink(missing_ok=True)  # an archive of the disk that is replaced now, which a script would still upload
        for half, whole in zip(halves, forms, strict=True):
            half.replace(whole)
        order.partial.replace(order.out)
    return DataVolume(
        path=order.out,
        size=order.size,
        used=found.nonzero_bytes / order.size,
        nonzero_bytes=found.nonzero_bytes,
        blocks=len(found.blocks),
        sha256=found.sha256,
        images=tuple(record["images"]),
        weights=record["weights"],
        filesystem=record["filesystem"],
        containerd=record["containerd"],
        cleaned=tuple(cleaned),
        seconds=watch.seconds,
        target=order.target.name,
        compiled=record["compiled"],
        exports=tuple(forms),
    )


def _on_loop(job: _Job, fill: Fill) -> dict[str, Any]:
    """XFS or ext4 on a loop device."""
    order, place = job.plan, job.place
    with job.watch("partition and file system"), ExitStack() as stack:
        _write_table(job)
        device = stack.enter_context(disk.attached(place.disk, order.target.extent(order.size)))
        make = disk.make_xfs if order.filesystem == "xfs" else disk.make_ext4
        make(device, label=order.target.label)
        stack.enter_context(disk.mounted(device, place.mount))
        rest = stack.pop_all()
    with rest:
        record = fill(place.mount)
        with faults.explained(job.scene), job.watch("flush"):
            disk.flush(place.mount)
        with job.watch("trim") if order.trim else nullcontext():
            if order.trim:
                disk.trim(place.mount)
    return record


def _in_tree(job: _Job, fill: Fill) -> dict[str, Any]:
    """ext4 out of a plain folder; the folder is removed with the workplace."""
    order, tree = job.plan, job.plan.tree
    assert tree is not None
    tree.mkdir(mode=0o700)
    try:
        record = fill(tree)
        tree.chmod(0o755)  # becomes the root of the file system
        with job.watch("partition and file system"):
            _write_table(job)
            disk.make_ext4_from(tree, job.place.disk, order.target.extent(order.size), label=order.target.label)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return record


def _write_table(job: _Job) -> None:
    if part := job.plan.target.partition(job.plan.size):
        gpt.write(job.place.disk, uuid.uuid4(), part)


def _fill(job: _Job, root: Path) -> dict[str, Any]:
    """Everything on the volume, in order. Returns the build record, which is also on it."""
    order, watch = job.plan, job.watch
    job.scene.root = root
    with faults.explained(job.scene), _readable():
        volume.make_folders(root)
        record = {
            "tool": f"builder {__version__}",
            "target": order.target.name,
            "filesystem": order.filesystem,
            **_images(job, root),
            "weights": _weights(job, root),
            "compiled": _compiled(job, root),
        }
        with watch("SELinux labels"):
            volume.label_all(root, order.target)
        volume.write_record(root, record)
    return record


@contextmanager
def _readable() -> Iterator[None]:
    """Within, what is made may be read by all, whatever the user's umask: pods have users of their own."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def _images(job: _Job, root: Path) -> dict[str, Any]:
    """The containerd root, or what the target has instead of it, and what the record says of it."""
    order, watch, images = job.plan, job.watch, [one.image for one in job.scene.opened]
    private = containerd.containerd(root / CONTAINERD, job.place.folder, programs=order.programs or find(), patient=True)
    with private as daemon, faults.explained(job.scene, ended=daemon.ended):
        for one in job.scene.opened:
            with watch(f"import {one.image.reference}", sum(blob.size for blob in one.image.blobs())) as task:
                daemon.load(one.layout, one.image, _Layers(one.image, task).seen, copied=order.keep_blobs)
        with watch("label and pin" if order.keep_blobs else "label, pin, drop compressed layers"):
            for row in daemon.images():
                daemon.label(row.reference)
            for image in images if not order.keep_blobs else ():
                daemon.drop_layers(image)
            daemon.collect()
            lent.expect_none(daemon.root)
        with watch("digest layers, flush"), disk.flushing(root):
            rows = _rows(images, daemon, root)
        listed = daemon.listed()
    volume.keep_only_caches(root)
    if not order.target.containerd_root:
        rows = gke.arrange(root, rows, listed)
    platform = images[0].platform if images else ""
    return {"containerd": daemon.version, "images": rows, "platform": platform, "blobs_kept": order.keep_blobs}


def _rows(images: list[OciImage], daemon: containerd.Containerd, root: Path) -> list[dict[str, Any]]:
    """The images for the record, each unpacked layer with its place on the volume and its digest. Images share layers."""
    folders = [daemon.layer_folders(image) for image in images]
    every = list(dict.fromkeys(folder for some in folders for folder in some))
    with ThreadPoolExecutor(blocks.HASHING) as pool:
        digests = dict(zip(every, pool.map(volume.tree_digest, every), strict=True))
    return [
        {
            **image.to_json(),
            "unpacked": [
                {"chain": chain, "path": str(folder.relative_to(root)), "sha256": digests[folder]}
                for chain, folder in zip(image.chain_ids, some, strict=True)
            ],
        }
        for image, some in zip(images, folders, strict=True)
    ]


def _weights(job: _Job, root: Path) -> dict[str, int]:
    """Manifest digest to bytes."""
    found: dict[str, int] = {}
    for one in job.plan.weights:
        from builder.node.weights import put  # obstore and awscrt, which a bake of images alone does not need

        with job.watch(f"weights {one.folder or one.reference or one.store}"):
            digest, size = put(one, root / MODELS, job.watch.progress)
            found[digest] = size
    return found


def _compiled(job: _Job, root: Path) -> dict[str, int]:
    """Key of each compile cache to bytes of its files."""
    found: dict[str, int] = {}
    for number, one in enumerate(job.plan.compiled):
        from builder.node.compiled import put

        with job.watch(f"compile cache {one.folder or one.reference or one.store}"):
            key, size = put(one, root, root / f".compiled-{number}", job.watch.progress)
            found[key] = size
    return found


class _Layers:
    """Says which layer of the image is being handed over, and counts its bytes."""

    def __init__(self, image: OciImage, task: Task) -> None:
        self._task, self._last = task, ""
        self._numbers = {layer.digest: number for number, layer in enumerate(image.layers, 1)}
        self._left = sum(blob.size for blob in image.blobs())

    def seen(self, blob: Descriptor, size: int) -> None:
        if blob.digest != self._last and blob.digest in self._numbers:
            self._task.note(f"layer {self._numbers[blob.digest]} of {len(self._numbers)}")
        self._last, self._left = blob.digest, self._left - size
        self._task.advance(size)
        if self._left <= 0:
            self._task.note("unpacking")
