"""The unpacked layers against what they were when they were unpacked.

The compressed layers were dropped, so `ctr images check` calls the image incomplete; instead every entry of every
layer is compared: path, mode, owner, device numbers, extended attributes and content (builder.node.volume, tree_digest).
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from builder.node import volume
from builder.node.proof.report import Notes

_OPAQUE = "trusted.overlay.opaque"
_CAPABILITY = "security.capability"


def audit(root: Path, record: dict[str, Any], notes: Notes) -> None:
    findings, seen = [], Counter[str]()
    folders: dict[Path, str] = {}  # images share layers
    for image in record.get("images", []):
        for layer in image["unpacked"]:
            folder = root / layer["path"]
            if folder not in folders:
                there = folder.is_dir()
                folders[folder] = volume.tree_digest(folder) if there else "missing"
                seen.update(marks(folder) if there else {})
            if folders[folder] != layer["sha256"]:
                where = f"{image['reference']}: layer {layer['chain']} at /{layer['path']}"
                findings.append(f"{where} is {folders[folder]}, expected {layer['sha256']}")
    marked = "".join(f", {count} {name}" for name, count in seen.items() if name != "entries")
    notes.add("unpacked layers", f"{len(folders)}, {seen['entries']} entries{marked}: each as when it was unpacked", findings)


def marks(folder: Path) -> Counter[str]:
    """How many entries of a layer carry what a careless copy loses."""
    found = Counter[str]()
    for path in volume.walk(folder):
        status = path.lstat()
        mode = status.st_mode
        found["entries"] += 1
        found["setuid or setgid"] += bool(stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID))
        found["whiteouts"] += bool(stat.S_ISCHR(mode) and status.st_rdev == 0)
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            names = os.listxattr(path, follow_symlinks=False)
            found["opaque"] += _OPAQUE in names
            found["with capabilities"] += _CAPABILITY in names
    return +found  # without those that are zero
