"""Everything on the mounted volume that can be checked before a containerd runs on it: it writes files of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from builder import units
from builder.errors import BuilderError
from builder.node import compiled, volume
from builder.node.proof.record import check
from builder.node.proof.report import Notes, first
from builder.node.targets import CACHE_TREES, COMPILED, CONTAINERD, MODELS, Target

MIN_FREE = 0.15  # kubelet evicts pods below 15 % free on the image file system (nodefs/imagefs defaults)
SNAPSHOTS = "snapshots"  # of overlayfs: a folder for each, with fs/ and work/ in it
ROOT = {"var", "opt", "mnt", "lost+found"}


def record(root: Path, notes: Notes) -> dict[str, Any]:
    """The build record; empty, with a finding, if it cannot be read."""
    path = root / volume.RECORD
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        check(raw)
    except (OSError, ValueError, RecursionError) as exc:
        notes.add("build record", "", [f"/{volume.RECORD}: {exc}"])
        return {}
    notes.add("build record", f"{raw['tool']}, containerd {raw['containerd']}, {raw['filesystem']}", [])
    return raw


def links(root: Path) -> list[str]:
    """Folders of the disk that are links, where containerd or a proof would work wherever they lead: on this machine.

    Links in the unpacked layers are left alone: nothing but a container follows those.
    """
    ours = [Path(name) for name in (CONTAINERD, MODELS, COMPILED, volume.RECORD)]
    tops = {top for path in ours for top in (path, *path.parents)}
    found = [str(top) for top in sorted(tops) if _is_link(root / top)]
    if not found:
        for folder, folders, names in os.walk(root / CONTAINERD):
            at = Path(folder)
            found += [str((at / name).relative_to(root)) for name in (*folders, *names) if _is_link(at / name)]
            if at.parent.name == SNAPSHOTS:
                folders[:] = []
    return [f"/{name}: a link to {(root / name).readlink()}, expected a folder or file" for name in found]


def _is_link(path: Path) -> bool:
    """What the file system refuses to show leads nowhere; the checks that need it say so."""
    try:
        return path.is_symlink()
    except OSError:
        return False


def audit_strays(root: Path, notes: Notes) -> None:
    """Nothing but the caches: what else a node finds on its data volume it may take for its own state."""
    findings = []
    for folder, known in ((root, ROOT), (root / "var", {"lib"}), (root / "var/lib", {"containerd", "builder"}),
                          (root / CONTAINERD, set(CACHE_TREES))):  # fmt: skip
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        findings += [f"/{path.relative_to(root)}: does not belong on a node image" for path in there if path.name not in known]
    notes.add("strays", "none: no identity, no state of the machine that baked", first(findings))


def audit_labels(root: Path, target: Target, notes: Notes) -> None:
    """SELinux contexts, where the target has them."""
    bare = volume.unlabelled(root, target)
    findings = [f"/{path.relative_to(root)}: not {context}" for path, context in bare]
    evidence = ", ".join(sorted(set(target.contexts.values()))) or "none, as expected"
    notes.add("SELinux labels", evidence, first(findings))


def audit_blobs(root: Path, rec: dict[str, Any], notes: Notes) -> None:
    """Every blob is what its name says; manifests and configs are there, compressed layers are not."""
    folder = root / CONTAINERD / CACHE_TREES[0] / "blobs" / "sha256"
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    findings = []
    for path in there:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        findings += [] if found == path.name else [f"sha256:{path.name} has sha256 {found}"]
    names = {f"sha256:{path.name}" for path in there}
    kept = bool(rec.get("blobs_kept"))
    for image in rec.get("images", []):
        needed = dict.fromkeys([image["digest"], image["manifest"], image["config"]])
        layers = [digest for digest, _ in image["layers"]]
        findings += [f"{image['reference']}: {digest} is missing" for digest in needed if digest not in names]
        findings += [
            f"{image['reference']}: compressed layer {digest} {'is missing' if kept else 'was not dropped'}"
            for digest in layers
            if (digest in names) != kept
        ]
    notes.add("content", f"{len(there)} blobs, each as its digest says", findings)


def audit_weights(root: Path, rec: dict[str, Any], notes: Notes) -> None:
    """Every byte of every model against its manifest."""
    models = root / MODELS
    there = {f"sha256:{p.name}": p for p in models.iterdir()} if models.is_dir() else {}
    expected: dict[str, int] = rec.get("weights", {})
    findings = [f"{digest}: {'not on the disk' if digest in expected else 'on the disk, not in the build record'}"
                for digest in sorted(set(there) ^ set(expected))]  # fmt: skip
    if there:
        from builder.transfer.check import check_folder  # awscrt, which a disk without weights does not need

        for digest, folder in there.items():
            try:
                findings += [f"{digest}: {fault}" for fault in check_folder(folder)]
            except BuilderError as exc:  # nothing in it to check it against
                findings.append(f"{digest}: {exc.message}")
    total = f"{len(expected)} model{'s' if len(expected) != 1 else ''}, {units.format_size(sum(expected.values()))}"
    notes.add("weights", f"{total}, every byte as in its manifest" if expected else "none", findings)


def audit_compiled(root: Path, rec: dict[str, Any], notes: Notes) -> None:
    """Every byte of every compile cache against its own list."""
    expected: dict[str, int] = rec.get("compiled", {})
    findings = compiled.check_compiled(root, rec)
    total = f"{len(expected)}, {units.format_size(sum(expected.values()))}, every byte as in its list"
    notes.add("compile caches", total if expected else "none", findings)


def audit_space(root: Path, target: Target, notes: Notes) -> float:
    """Free share of the volume. Nothing is ever written to a disk that holds no containerd root."""
    usage = shutil.disk_usage(root)
    free, total = usage.free / usage.total, units.format_size(usage.total)
    low = [f"{free:.0%} of {total}, expected {MIN_FREE:.0%}"] if free < MIN_FREE and target.containerd_root else []
    notes.add("free space", f"{free:.1%} of {total}", low)
    return free
