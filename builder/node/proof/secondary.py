"""A secondary boot disk of GKE: unpacked layers, and two lists of them that the node reads.

No containerd of ours starts anything from it: manifest and config are not on it, the node fetches them.
Digest rule: ai-on-gke, gke-disk-image-builder, `script/verify.sh`; builder.node.gke says where it lies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from builder.node import gke
from builder.node.proof.report import Notes, first

ROOT = {gke.SNAPSHOTS, gke.LAYERS, gke.IMAGES, "var", "lost+found"}


def audit(root: Path, record: dict[str, Any], notes: Notes) -> None:
    """The list of layers against the layers, the list of images against the build record, and nothing else on the disk."""
    extra = [f"/{path.name}: does not belong on a secondary disk" for path in sorted(root.iterdir()) if path.name not in ROOT]
    notes.add("strays", "none", first(extra))
    _audit_layers(root, record, notes)
    text = _read(root / gke.IMAGES)
    there = {line.split()[0] for line in text.splitlines()[1:] if line.split()}
    wanted = [image["reference"] for image in record.get("images", [])]
    findings = [f"{name} is not in /{gke.IMAGES}" for name in wanted if name not in there]
    notes.add(gke.IMAGES, f"{len(there)} references", findings)
    notes.add("start", "not started: a node takes manifest and config from the registry, and the layers from here", [])


def _audit_layers(root: Path, record: dict[str, Any], notes: Notes) -> None:
    try:
        listed = gke.parse_layers(_read(root / gke.LAYERS))
    except ValueError as exc:
        notes.add(gke.LAYERS, "", [f"a line is not `chain path md5`: {exc}"])
        return
    wanted = {layer["chain"] for image in record.get("images", []) for layer in image["unpacked"]}
    findings = [f"{chain} is {'not listed' if chain in wanted else 'listed, not in the build record'}"
                for chain in sorted(wanted ^ set(listed))]  # fmt: skip
    for chain, (path, expected) in listed.items():
        folder = root / path
        found = gke.layer_md5(folder) if folder.is_dir() and root in folder.resolve().parents else "missing"
        findings += [] if found == expected else [f"{chain} at /{path} has md5 {found}, expected {expected}"]
    notes.add(gke.LAYERS, f"{len(listed)} layers, each as its md5 says", findings)


def _read(path: Path) -> str:
    """The list, or nothing: what is missing is then missed by name."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
