"""What lies on Bottlerocket's data volume, and what the node expects of it.

    /                         root of the file system; the node mounts var, opt and mnt from it
      var/lib/containerd/     content, metadata, overlayfs snapshots, and nothing else
      var/lib/builder/models/<64 hex>/    restored weights (builder/format/volume.py)
      var/lib/builder/bake.json           what was baked, from what, with what
      opt/ mnt/

Sources: twoliter `partyplanner` and bottlerocket-core-kit `prepare-local-fs.service`, `local.mount`,
`release-repart-local.conf`, `selinux-policy/rules.cil`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from builder.errors import CapabilityError
from builder.node.gpt import Partition, whole_disk

TYPE_GUID = "626f7474-6c65-6474-6861-726d61726b73"
PART_GUID = "5b94e8df-28b8-485c-9d19-362263b5944c"  # the preferred data partition
# With the label, prepare-local-fs starts at once and both repart-data units are stopped; systemd-repart does not add
# it to a partition that need not grow, so it is written here.
PART_LABEL = "BOTTLEROCKET-DATA"
CONTAINERD = "var/lib/containerd"
MODELS = "var/lib/builder/models"
RECORD = "var/lib/builder/bake.json"
# The policy's own typetransitions create exactly these three as cache_t; pods may read and execute that type but not
# write it, root with a hostPath mount included (measured: denied with the label, written without).
CACHE_TREES = (
    "io.containerd.content.v1.content",
    "io.containerd.metadata.v1.bolt",
    "io.containerd.snapshotter.v1.overlayfs",
)
LABEL_KEY = "security.selinux"
LABEL = b"system_u:object_r:cache_t:s0"
RECORD_FORMAT = 1


def partition(size: int) -> Partition:
    """The data partition of a disk of `size` bytes."""
    return whole_disk(size, type_guid=TYPE_GUID, guid=PART_GUID, label=PART_LABEL)


def make_folders(root: Path) -> None:
    """The empty volume, folders 0755 and owned by root."""
    for name in (CONTAINERD, MODELS, "opt", "mnt"):
        (root / name).mkdir(parents=True, exist_ok=True)


def keep_only_caches(root: Path) -> list[str]:
    """Remove what containerd keeps beside the caches: a per-machine identity that two nodes must not share, and state
    of plugins. Returns the names removed."""
    folder = root / CONTAINERD
    extra = sorted(p for p in folder.iterdir() if p.name not in CACHE_TREES)
    for path in extra:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return [path.name for path in extra]


def labelled_roots(root: Path) -> list[Path]:
    """Folders whose every entry carries LABEL: the containerd caches and each model. models/ itself stays bare, so that
    a prefetch job may add a model beside the baked ones."""
    caches = [root / CONTAINERD / name for name in CACHE_TREES]
    models = root / MODELS
    return [p for p in caches if p.exists()] + (sorted(p for p in models.iterdir() if p.is_dir()) if models.is_dir() else [])


def label_all(root: Path) -> int:
    """Set LABEL on everything that carries it; links themselves, never their targets. Returns the number of entries.

    Raises CapabilityError where the kernel refuses the attribute (no CAP_SYS_ADMIN, or a file system without it).
    """
    count = 0
    for top in labelled_roots(root):
        for path in walk(top):
            try:
                os.setxattr(path, LABEL_KEY, LABEL, follow_symlinks=False)
            except OSError as exc:
                raise CapabilityError(f"{path}: cannot set {LABEL_KEY}: {exc.strerror}",
                                      hint="run as root, in a container with CAP_SYS_ADMIN") from exc  # fmt: skip
            count += 1
    return count


def unlabelled(root: Path) -> list[Path]:
    """Entries that should carry LABEL and do not."""
    return [path for top in labelled_roots(root) for path in walk(top) if not has_label(path)]


def has_label(path: Path) -> bool:
    try:
        return os.getxattr(path, LABEL_KEY, follow_symlinks=False).rstrip(b"\0") == LABEL
    except OSError:
        return False


def walk(top: Path) -> Iterator[Path]:
    """`top` and everything below it, links not followed, in a fixed order."""
    yield top
    for folder, folders, files in os.walk(top):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(folders + files))


def tree_digest(top: Path) -> str:
    """sha256 over every entry below `top`: path, kind and mode, owner, device, extended attributes, and content.

    Left out: times, and the SELinux label, which is audited on its own. Two unpacked layers with equal digests are the
    same to a container.
    """
    outer = hashlib.sha256()
    for path in walk(top):
        found = path.lstat()
        special = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
        attributes = [
            (key, os.getxattr(path, key, follow_symlinks=False).hex())
            for key in sorted(os.listxattr(path, follow_symlinks=False))
            if key != LABEL_KEY
        ]
        row = [
            os.fsencode(path.relative_to(top)).hex(),
            found.st_mode,
            found.st_uid,
            found.st_gid,
            found.st_rdev if special else 0,
        ]
        outer.update(json.dumps([row, attributes, _content(path, found.st_mode)]).encode() + b"\n")
    return outer.hexdigest()


def write_record(root: Path, record: dict[str, Any]) -> None:
    """The build record, canonical JSON."""
    path = root / RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": RECORD_FORMAT, **record}, sort_keys=True, indent=1) + "\n")


def _content(path: Path, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return os.fsencode(path.readlink()).hex()
    if not stat.S_ISREG(mode):
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
