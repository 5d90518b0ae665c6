"""The layout of a GKE secondary boot disk, made out of a containerd root by renaming: no file is read or copied.

    snapshots/<n>/fs        an unpacked layer, as overlayfs reads it: trusted.overlay.*, security.capability, hard links kept
    snapshots.metadata      a line per layer: chain id, path, md5 (of the sorted md5s of its regular files)
    images.metadata         what `ctr images ls` says

Nothing of containerd's own is on it: the node fetches manifest and config of an image, and takes the layers from here.
Layout and digest rule: ai-on-gke, gke-disk-image-builder, `script/startup.sh`. There the layers are copied with `cp -r -p`,
which loses the attributes that mark opaque folders and file capabilities.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
from pathlib import Path
from typing import Any

from builder.node.targets import CACHE_TREES, CONTAINERD
from builder.node.volume import walk

SNAPSHOTS, LAYERS, IMAGES = "snapshots", "snapshots.metadata", "images.metadata"


def arrange(root: Path, rows: list[dict[str, Any]], listed: str) -> list[dict[str, Any]]:
    """Turn the file system `root` into a secondary disk. No containerd runs on it any more.

    rows: images as the build record has them; returned with the places where the layers are now. listed: `ctr images ls`.
    """
    before = Path(CONTAINERD, CACHE_TREES[2])
    moved: dict[str, tuple[str, str]] = {}  # old path to (chain, new path); images share layers
    for row in rows:
        for layer in row["unpacked"]:
            moved[layer["path"]] = (layer["chain"], str(Path(layer["path"]).relative_to(before)))
    for old, (_, new) in moved.items():
        (root / new).parent.mkdir(parents=True)
        (root / old).rename(root / new)
    shutil.rmtree(root / CONTAINERD)
    for name in ("opt", "mnt"):
        (root / name).rmdir()
    lines = [f"{chain} {new} {layer_md5(root / new)}\n" for chain, new in moved.values()]
    (root / LAYERS).write_text("".join(lines))
    (root / IMAGES).write_text(listed)
    return [{**row, "unpacked": [{**layer, "path": moved[layer["path"]][1]} for layer in row["unpacked"]]} for row in rows]


def layer_md5(folder: Path) -> str:
    """md5 of the sorted lines that `md5sum` prints for the regular files, names left out."""
    found = sorted(_line(path) for path in walk(folder) if stat.S_ISREG(path.lstat().st_mode))
    return hashlib.md5("".join(found).encode(), usedforsecurity=False).hexdigest()


def _line(path: Path) -> str:
    """GNU md5sum marks a name that it has to escape with a backslash before the digest."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return ("\\" if "\\" in str(path) or "\n" in str(path) else "") + digest + "\n"


def parse_layers(text: str) -> dict[str, tuple[str, str]]:
    """snapshots.metadata as chain id to (path, md5)."""
    return {chain: (path, digest) for chain, path, digest in (line.split(" ") for line in text.splitlines())}
