"""Proof that a baked disk does what it claims: a copy of it, a second containerd, a container started with no pull.

Every check adds its findings; none hides another. The second containerd runs with its CRI plugin, as on a node. The
plugin is asked without a gRPC client: the image gets one more tag (on the copy), the plugin sees the event, reads the
image's config out of the baked store, and names the image `sha256:<config digest>`; if it cannot, the name stays away
(containerd internal/cri/server/images, UpdateImage). The compressed layers were dropped, so `ctr images check` calls
the image incomplete; instead each unpacked layer is compared, entry by entry, with the digest taken at the unpacking.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder import process, units
from builder.errors import BuilderError, ClaimError, ConfigError, IntegrityError
from builder.node import containerd, disk, gpt, volume, workplace
from builder.node.targets import BOTTLEROCKET, CACHE_TREES, CONTAINERD, MODELS
from builder.progress import NoProgress, Progress, step

MIN_FREE = 0.15  # kubelet evicts pods below 15 % free on the image file system (nodefs/imagefs defaults)
RUN_S = 120.0
CRI_S = 10.0
SHOWN = 5


@dataclass(frozen=True, slots=True)
class VerifyPlan:
    """disk: the file. run: arguments for the image's entry point, or None for the default of `_command`.

    run_s: seconds the container may take. scratch: folder of the copy, default the disk's own.
    """

    disk: Path
    run: tuple[str, ...] | None = None
    run_s: float = RUN_S
    scratch: Path | None = None


@dataclass(frozen=True, slots=True)
class ContainerRun:
    """One container started from the disk.

    arguments: the whole command. seconds: from the order until its exit. output: the end of what it said.
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
class VerifyDisk:
    """What was seen. checks: name to one line of evidence. runs: containers started. free: share of the volume, 0 to 1."""

    path: Path
    containerd: str
    checks: dict[str, str]
    runs: tuple[ContainerRun, ...]
    free: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "containerd": self.containerd,
            "checks": self.checks,
            "runs": [run.to_json() for run in self.runs],
            "free": round(self.free, 4),
            "seconds": round(self.seconds, 3),
        }


@dataclass
class _Notes:
    """What the checks say while they go."""

    checks: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def add(self, name: str, evidence: str, findings: list[str]) -> None:
        self.findings += [f"{name}: {text}" for text in findings]
        if not findings:
            self.checks[name] = evidence


def verify(plan: VerifyPlan, *, progress: Progress | None = None) -> VerifyDisk:
    """Check a copy of the disk; the disk itself is only read.

    Raises ClaimError with every finding, CapabilityError where root, loop devices, programs or space are missing.
    """
    if not plan.disk.is_file():
        raise ConfigError(f"{plan.disk}: no such file")
    disk.need_root("builder bake verify")
    begun, notes = time.monotonic(), _Notes()
    part = _audit_table(plan.disk, notes)
    if part is None:
        raise _claim(plan.disk, notes)
    copy = (plan.scratch or plan.disk.parent) / f"{plan.disk.name}.check"
    with workplace.terminable():
        workplace.sweep()
        with ExitStack() as stack:
            stack.callback(copy.unlink, missing_ok=True)
            place = stack.enter_context(workplace.workplace(copy, temporary=True))
            with step(progress or NoProgress(), "bake: copy"):
                disk.need_space(copy.parent, plan.disk.stat().st_blocks * 512)
                process.run(["cp", "--sparse=always", "--reflink=auto", plan.disk, copy])
            stack.enter_context(disk.mounted(stack.enter_context(disk.attached(copy, part)), place.mount))
            version, runs, free = _inspect(plan, place, notes, progress or NoProgress())
    if notes.findings:
        raise _claim(plan.disk, notes)
    return VerifyDisk(plan.disk, version, notes.checks, tuple(runs), free, time.monotonic() - begun)


def _inspect(plan: VerifyPlan, place: workplace.Workplace, notes: _Notes,
             progress: Progress) -> tuple[str, list[ContainerRun], float]:  # fmt: skip
    """All that needs the file system. Labels first: a running containerd writes files of its own."""
    root = place.mount
    record = _record(root, notes)
    with step(progress, "bake: labels, blobs, layers, weights"):
        _audit_labels(root, notes)
        _audit_blobs(root, record, notes)
        _audit_layers(root, record, notes)
        _audit_weights(root, record, notes)
    usage = shutil.disk_usage(root)
    free = usage.free / usage.total
    low = [f"{free:.0%} of {units.format_size(usage.total)}, expected {MIN_FREE:.0%}"] if free < MIN_FREE else []
    notes.add("free space", f"{free:.1%} of {units.format_size(usage.total)}", low)
    runs: list[ContainerRun] = []
    images, caches = record.get("images", []), root / CONTAINERD
    with step(progress, "bake: second containerd, start without pull"):
        with containerd.containerd(caches, place.folder) as daemon:  # without CRI, which mends labels as it starts
            _audit_references(daemon, notes)
            whole = [image for image in images if _audit_image(daemon, image, notes)]
        with containerd.containerd(caches, place.folder, cri=True) as daemon:
            for image in whole:
                _audit_cri(daemon, image, notes)
                runs += _start(daemon, image, plan, place, notes)
    return daemon.version, runs, free


def _audit_table(path: Path, notes: _Notes) -> gpt.Partition | None:
    """The data partition; None if there is none to mount."""
    try:
        table = gpt.read(path)
    except IntegrityError as exc:
        notes.findings.append(f"partition table: {exc.message}")
        return None
    findings = list(table.faults)
    if len(table.partitions) != 1:
        findings.append(f"{len(table.partitions)} partitions, expected 1")
        notes.add("partition table", "", findings)
        return None
    found = table.partitions[0]
    size = path.stat().st_size
    expected = BOTTLEROCKET.partition(size - size % gpt.MIB)
    for name in ("type_guid", "guid", "label", "first", "last"):
        is_, should = getattr(found, name), getattr(expected, name)
        findings += [] if is_ == should else [f"{name} is {str(is_)!r}, expected {str(should)!r}"]
    notes.add("partition table", f"{found.label}, both copies sound", findings)
    return found


def _record(root: Path, notes: _Notes) -> dict[str, Any]:
    path = root / volume.RECORD
    try:
        raw = json.loads(path.read_text())
        if not isinstance(raw, dict) or raw.get("format") != volume.RECORD_FORMAT:
            raise ValueError(f"format {raw.get('format') if isinstance(raw, dict) else raw!r}")
    except (OSError, ValueError) as exc:
        notes.add("build record", "", [f"/{volume.RECORD}: {exc}"])
        return {}
    notes.add("build record", f"{raw['tool']}, containerd {raw['containerd']}, {raw['filesystem']}", [])
    return raw


def _audit_labels(root: Path, notes: _Notes) -> None:
    bare = volume.unlabelled(root, BOTTLEROCKET)
    findings = [f"/{p.relative_to(root)}: not {context}" for p, context in bare[:SHOWN]]
    findings += [f"and {len(bare) - SHOWN} more"] if len(bare) > SHOWN else []
    folder = root / CONTAINERD
    extra = sorted(p.name for p in folder.iterdir() if p.name not in CACHE_TREES) if folder.is_dir() else []
    findings += [f"/{CONTAINERD}/{name}: does not belong on a node image" for name in extra]
    notes.add("SELinux labels", ", ".join(sorted(set(BOTTLEROCKET.contexts.values()))), findings)


def _audit_blobs(root: Path, record: dict[str, Any], notes: _Notes) -> None:
    """Every blob is what its name says; manifests and configs are there, compressed layers are not."""
    folder = root / CONTAINERD / CACHE_TREES[0] / "blobs" / "sha256"
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    findings = []
    for path in there:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        findings += [] if found == path.name else [f"sha256:{path.name} has sha256 {found}"]
    names = {f"sha256:{path.name}" for path in there}
    for image in record.get("images", []):
        needed = dict.fromkeys([image["digest"], image["manifest"], image["config"]])
        findings += [f"{image['reference']}: {digest} is missing" for digest in needed if digest not in names]
        kept = [digest for digest, _ in image["layers"] if digest in names]
        findings += [f"{image['reference']}: compressed layer {digest} was not dropped" for digest in kept]
    notes.add("content", f"{len(there)} blobs, each as its digest says", findings)


def _audit_layers(root: Path, record: dict[str, Any], notes: _Notes) -> None:
    findings, count = [], 0
    for image in record.get("images", []):
        for layer in image["unpacked"]:
            folder, count = root / layer["path"], count + 1
            found = volume.tree_digest(folder) if folder.is_dir() else "missing"
            if found != layer["sha256"]:
                findings.append(
                    f"{image['reference']}: layer {layer['chain']} at /{layer['path']} is {found}, expected {layer['sha256']}"
                )
    notes.add("unpacked layers", f"{count}, every file, owner and attribute as unpacked", findings)


def _audit_weights(root: Path, record: dict[str, Any], notes: _Notes) -> None:
    models = root / MODELS
    there = {f"sha256:{p.name}": p for p in models.iterdir()} if models.is_dir() else {}
    expected: dict[str, int] = record.get("weights", {})
    findings = [f"{digest}: {'not on the disk' if digest in expected else 'on the disk, not in the build record'}"
                for digest in sorted(set(there) ^ set(expected))]  # fmt: skip
    if there:
        from builder.transfer.check import check_folder  # awscrt, which a disk without weights does not need

        for digest, folder in there.items():
            findings += [f"{digest}: {fault}" for fault in check_folder(folder)]
    total = units.format_size(sum(expected.values()))
    notes.add("weights", f"{len(expected)} models, {total}, every byte as in its manifest" if expected else "none", findings)


def _audit_image(daemon: containerd.Containerd, image: dict[str, Any], notes: _Notes) -> bool:
    """Whether the image is there by tag and digest, and unpacked."""
    reference, digest = image["reference"], image["digest"]
    rows = {row.reference: row.digest for row in daemon.images()}
    findings = [
        f"{name} is {rows.get(name, 'absent')}, expected {digest}"
        for name in (reference, _by_digest(image))
        if rows.get(name) != digest
    ]
    snapshots = daemon.snapshots()
    chains = [layer["chain"] for layer in image["unpacked"]]
    findings += [
        f"snapshot {chain} is {snapshots.get(chain, 'missing')}" for chain in chains if snapshots.get(chain) != "Committed"
    ]
    notes.add(f"image {reference}", f"by tag, by {digest}, {len(chains)} layers unpacked", findings)
    return not findings


def _audit_cri(daemon: containerd.Containerd, image: dict[str, Any], notes: _Notes) -> None:
    late = [] if _taken_by_cri(daemon, image) else [f"the plugin did not take the image within {CRI_S:.0f} s"]
    notes.add(f"CRI {image['reference']}", f"taken as {image['config']}", late)


def _taken_by_cri(daemon: containerd.Containerd, image: dict[str, Any]) -> bool:
    probe = f"builder.invalid/probe:{image['manifest'][7:19]}"
    daemon.ctr("images", "tag", _by_digest(image), probe)  # copies the labels too, and the plugin skips what is managed
    daemon.ctr("images", "label", probe, *(f"{key}=" for key in containerd.LABELS))
    deadline = time.monotonic() + CRI_S
    while time.monotonic() < deadline:
        if any(row.reference == image["config"] for row in daemon.images()):
            return True
        time.sleep(0.05)
    return False


def _by_digest(image: dict[str, Any]) -> str:
    return f"{image['reference'].rsplit(':', 1)[0]}@{image['digest']}"


def _audit_references(daemon: containerd.Containerd, notes: _Notes) -> None:
    """kubelet's image GC spares what is pinned; the CRI plugin lists what is managed."""
    findings, rows = [], daemon.images()
    for row in rows:
        for key, value in containerd.LABELS.items():
            if row.labels.get(key) != value:
                findings.append(f"{row.reference}: {key} is {row.labels.get(key)!r}, expected {value!r}")
    notes.add("pinned and managed", f"{len(rows)} references", findings)


def _start(daemon: containerd.Containerd, image: dict[str, Any], plan: VerifyPlan, place: workplace.Workplace,
           notes: _Notes) -> list[ContainerRun]:  # fmt: skip
    """Start the image by digest, as its own user, weights mounted read-only where the runtime looks for them."""
    name = f"start {image['reference']}"
    arguments = _command(image, plan.run)
    if arguments is None:
        notes.add(name, "", ["its entry point is not known to end by itself; say what to run with --run"])
        return []
    reference = _by_digest(image)
    models = place.mount / MODELS
    mount = f"type=bind,src={models},dst=/{MODELS},options=rbind:ro"
    begun = time.monotonic()
    argv = (*image["entrypoint"], *arguments)  # ctr run replaces the entry point where it is given arguments
    try:
        said = daemon.ctr("run", "--rm", "--mount", mount, reference, place.container, *argv, timeout_s=plan.run_s)
    except BuilderError as exc:
        notes.add(name, "", [exc.message])
        daemon.end(place.container)
        return []
    run = ContainerRun(reference, argv, image["user"] or "root", time.monotonic() - begun, said[-2000:])
    root = [] if _plain_user(image["user"]) or not _ours(image) else [f"runs as {run.user}, expected another user than root"]
    notes.add(name, f"exit 0 as {run.user}, no pull", root)
    return [run]


def _command(image: dict[str, Any], asked: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Arguments for the entry point. Default: --help for this project's images, /bin/true where there is none."""
    if asked is not None:
        return asked
    if _ours(image):
        return ("--help",)
    return None if image["entrypoint"] else ("/bin/true",)


def _ours(image: dict[str, Any]) -> bool:
    return "builder.runtime" in image["entrypoint"]


def _plain_user(user: str) -> bool:
    return user.split(":")[0] not in ("", "0", "root")


def _claim(path: Path, notes: _Notes) -> ClaimError:
    lines = "".join(f"\n  {finding}" for finding in notes.findings)
    return ClaimError(
        f"{path}: {len(notes.findings)} findings:{lines}", hint="bake the disk again", where={"findings": notes.findings}
    )
