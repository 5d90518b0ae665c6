"""A node's data volume as a disk file: images unpacked, labelled and pinned, small weights beside them.

Needs root, loop devices and containerd; no cloud instance, no registry. The steps are those of `_fill`, in order.
Nothing half-made is visible: the work happens in OUT.partial, which is renamed at the end.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder import __version__, units
from builder.errors import ConfigError
from builder.format.volume import marker_digest
from builder.node import blocks, containerd, disk, gpt, layout, volume, workplace
from builder.node.inputs import ImageInput, WeightsInput
from builder.node.programs import Programs, find
from builder.node.targets import BOTTLEROCKET, CONTAINERD, MODELS, Target
from builder.progress import NoProgress, Progress, step

DEFAULT_SIZE = 120 * disk.GIB
UNPACKED_RATIO = 2.6  # unpacked bytes per compressed byte, as Debian's base layers have; CUDA libraries have less
SPARE = 256 << 20  # file system metadata, journal, containerd's database

Fill = Callable[[Path], dict[str, Any]]  # root of the new file system to the build record


@dataclass(frozen=True, slots=True)
class BakePlan:
    """What to make. size: bytes of the disk, whole GiB. loop: False builds ext4 without loop devices.

    programs: the containerd to bake with; None finds one.
    """

    out: Path
    images: tuple[ImageInput, ...] = ()
    weights: tuple[WeightsInput, ...] = ()
    size: int = DEFAULT_SIZE
    platform: str = ""
    loop: bool = True
    force: bool = False
    target: Target = BOTTLEROCKET
    programs: Programs | None = None


@dataclass(frozen=True, slots=True)
class DataVolume:
    """A finished disk.

    size: bytes of the disk. blocks, nonzero_bytes, sha256: see builder.node.blocks. images: as on the disk, with the
    digest of every unpacked layer. weights: manifest digest to bytes. filesystem: "xfs" or "ext4".
    used: share of the disk that holds anything, 0 to 1.
    cleaned: what killed predecessors had left. seconds: per step.
    """

    path: Path
    size: int
    nonzero_bytes: int
    blocks: int
    sha256: str
    images: tuple[dict[str, Any], ...]
    weights: dict[str, int]
    filesystem: str
    containerd: str
    used: float
    cleaned: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "size": self.size,
            "nonzero_bytes": self.nonzero_bytes,
            "blocks": self.blocks,
            "sha256": self.sha256,
            "images": list(self.images),
            "weights": self.weights,
            "filesystem": self.filesystem,
            "containerd": self.containerd,
            "used": round(self.used, 4),
            "cleaned": list(self.cleaned),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


class Stopwatch:
    """Seconds per named step, shown as it goes."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        with step(self.progress, f"bake: {name}"):
            yield
        self.seconds[name] = time.monotonic() - begun


def bake(plan: BakePlan, *, progress: Progress | None = None) -> DataVolume:
    """Make the disk `plan.out`.

    Raises ConfigError (plan, layout), CapabilityError (root, loop devices, programs, space), IntegrityError (a blob or
    a weights folder is not what its digest says). After any of them, and after Ctrl-C, nothing is left behind.
    """
    _check_plan(plan)
    disk.need_root("builder bake")
    watch = Stopwatch(progress or NoProgress())
    partial = plan.out.with_name(plan.out.name + ".partial")
    tree = None if plan.loop else plan.out.with_name(plan.out.name + ".tree")
    with workplace.terminable():
        cleaned = workplace.sweep()
        with ExitStack() as stack:
            stack.callback(partial.unlink, missing_ok=True)
            place = stack.enter_context(workplace.workplace(partial, tree=tree))
            loaded = [_opened(stack, one, plan.platform) for one in plan.images]
            disk.need_space(plan.out.parent, _estimate(plan, [image for _, image in loaded]))
            partial.unlink(missing_ok=True)
            disk.create(partial, plan.size)
            make = _in_tree if tree else _on_loop
            record = make(plan, place, lambda root: _fill(plan, root, place, loaded, watch), watch)
            with watch("scan blocks"):
                found = blocks.scan(partial)
            partial.replace(plan.out)
    return DataVolume(
        path=plan.out,
        size=plan.size,
        used=found.nonzero_bytes / plan.size,
        nonzero_bytes=found.nonzero_bytes,
        blocks=len(found.blocks),
        sha256=found.sha256,
        images=tuple(record["images"]),
        weights=record["weights"],
        filesystem=record["filesystem"],
        containerd=record["containerd"],
        cleaned=tuple(cleaned),
        seconds=watch.seconds,
    )


def _on_loop(plan: BakePlan, place: workplace.Workplace, fill: Fill, watch: Stopwatch) -> dict[str, Any]:
    """XFS on a loop device."""
    with watch("partition and file system"), ExitStack() as stack:
        _write_table(plan, place)
        device = stack.enter_context(disk.attached(place.disk, plan.target.extent(plan.size)))
        disk.make_xfs(device, label=plan.target.label)
        stack.enter_context(disk.mounted(device, place.mount))
        rest = stack.pop_all()
    with rest:
        record = fill(place.mount)
        with watch("trim"):
            disk.trim(place.mount)
    return record


def _in_tree(plan: BakePlan, place: workplace.Workplace, fill: Fill, watch: Stopwatch) -> dict[str, Any]:
    """ext4 out of a plain folder; the folder is removed with the workplace."""
    tree = plan.out.with_name(plan.out.name + ".tree")
    tree.mkdir(mode=0o700)
    try:
        record = fill(tree)
        tree.chmod(0o755)  # becomes the root of the file system
        with watch("partition and file system"):
            _write_table(plan, place)
            disk.make_ext4_from(tree, place.disk, plan.target.extent(plan.size), label=plan.target.label)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return record


def _write_table(plan: BakePlan, place: workplace.Workplace) -> None:
    if part := plan.target.partition(plan.size):
        gpt.write(place.disk, uuid.uuid4(), part)


def _fill(plan: BakePlan, root: Path, place: workplace.Workplace, loaded: list[tuple[layout.Layout, layout.OciImage]],
          watch: Stopwatch) -> dict[str, Any]:  # fmt: skip
    """Everything on the volume, in order. Returns the build record, which is also on it."""
    volume.make_folders(root)
    rows: list[dict[str, Any]] = []
    with containerd.containerd(root / CONTAINERD, place.folder, programs=plan.programs or find()) as daemon:
        for source, image in loaded:
            with watch(f"import {image.reference}"):
                daemon.load(source, image)
        with watch("label, pin, drop compressed layers"):
            for row in daemon.images():
                daemon.label(row.reference)
            for _, image in loaded:
                daemon.drop_layers(image)
            daemon.collect()
        with watch("digest layers"):
            rows = [_row(image, daemon, root) for _, image in loaded]
    volume.keep_only_caches(root)
    weights: dict[str, int] = {}
    if plan.weights:
        from builder.node.weights import put  # obstore and awscrt, which a bake of images alone does not need
    for one in plan.weights:
        with watch(f"weights {one.folder or one.reference or one.store}"):
            digest, size = put(one, root / MODELS, watch.progress)
            weights[digest] = size
    with watch("SELinux labels"):
        volume.label_all(root, plan.target)
    record = {
        "tool": f"builder {__version__}",
        "target": plan.target.name,
        "filesystem": "xfs" if plan.loop else "ext4",
        "containerd": daemon.version,
        "images": rows,
        "weights": weights,
    }
    volume.write_record(root, record)
    return record


def _row(image: layout.OciImage, daemon: containerd.Containerd, root: Path) -> dict[str, Any]:
    """The image for the record, each unpacked layer with its place on the volume and its digest."""
    folders = daemon.layer_folders(image)
    layers = [
        {"chain": chain, "path": str(folder.relative_to(root)), "sha256": volume.tree_digest(folder)}
        for chain, folder in zip(image.chain_ids, folders, strict=True)
    ]
    return {**image.to_json(), "unpacked": layers}


def _opened(stack: ExitStack, one: ImageInput, platform: str) -> tuple[layout.Layout, layout.OciImage]:
    opened = stack.enter_context(layout.open_layout(one.path))
    return opened, layout.find_image(opened, reference=one.reference, platform=platform)


def _estimate(plan: BakePlan, found: list[layout.OciImage]) -> int:
    """Bytes that the work may occupy at its height: compressed and unpacked layers, weights, metadata.

    Raises ConfigError if the disk is certainly too small, even for layers that do not grow when unpacked.
    """
    compressed = sum(image.size for image in found)
    rest = SPARE + sum(p.stat().st_size for one in plan.weights if one.folder for p in one.folder.rglob("*") if p.is_file())
    if 2 * compressed + rest > plan.size:
        said = f"a disk of {units.format_size(plan.size)} for at least {units.format_size(2 * compressed + rest)}"
        raise ConfigError(said, hint="choose a larger --size")
    need = round(compressed * (1 + UNPACKED_RATIO)) + rest
    return need if plan.loop else 2 * need  # the tree and the disk made from it are there together


def _check_plan(plan: BakePlan) -> None:
    if plan.size % disk.GIB or plan.size < disk.MIN_SIZE:
        raise ConfigError(
            f"size of {plan.size} bytes; expected whole GiB, at least 1", hint="volumes come in whole GiB: --size 120GiB"
        )
    if not plan.images and not plan.weights:
        raise ConfigError("nothing to bake", hint="name an image with --image or --oci, or weights with --weights")
    if plan.out.exists() and not plan.force:
        raise ConfigError(f"{plan.out}: already there", hint="--force replaces it")
    if not plan.out.parent.is_dir():
        raise ConfigError(f"{plan.out.parent}: no such folder")
    for one in plan.weights:
        if one.folder and not marker_digest(one.folder):
            raise ConfigError(f"{one.folder}: not a restored model: no .builder/complete in it",
                              hint=f"builder weights pull --store URL --to {one.folder}")  # fmt: skip
