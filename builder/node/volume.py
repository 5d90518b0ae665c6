"""What lies on a node's data volume, and how it is labelled, digested and recorded.

/                         root of the file system; Bottlerocket mounts var, opt and mnt from it
  var/lib/containerd/     content, metadata, overlayfs snapshots, and nothing else
  var/lib/builder/models/<64 hex>/    restored weights (builder/format/volume.py)
  var/lib/builder/compiled/<64 hex>/  captured compile caches (builder/format/compiled.py)
  var/lib/builder/bake.json           what was baked, from what, with what
  opt/ mnt/
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from builder.errors import CapabilityError
from builder.node.targets import CACHE_TREES, CONTAINERD, MODELS, Target

RECORD = "var/lib/builder/bake.json"
LABEL_KEY = "security.selinux"
RECORD_FORMAT = 1


def make_folders(root: Path) -> None:
    """The empty volume, folders 0755 and owned by root."""
    for name in (CONTAINERD, MODELS, "opt", "mnt"):
        (root / name).mkdir(parents=True, exist_ok=True)


def own(top: Path) -> int:
    """Give the tree to root, readable by all and writable by none else. Returns the bytes of its files."""
    size = 0
    for path in walk(top):
        os.chown(path, 0, 0, follow_symlinks=False)
        path.chmod(0o755 if path.is_dir() else 0o644)
        size += 0 if path.is_dir() else path.stat().st_size
    return size


def keep_only_caches(root: Path) -> list[str]:
    """Remove what containerd keeps beside the caches: a per-machine identity that two nodes must not share, and state
    of plugins. Returns the names removed."""
    folder = root / CONTAINERD
    extra = sorted(p for p in folder.iterdir() if p.name not in CACHE_TREES)
    for path in extra:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return [path.name for path in extra]


def label_all(root: Path, target: Target) -> int:
    """Set the target's contexts; on links themselves, never on what they point to. Returns the number of entries.

    Raises CapabilityError where the kernel refuses the attribute (no CAP_SYS_ADMIN, or a file system without it).
    """
    count = 0
    for path, context in expected_labels(root, target):
        try:
            os.setxattr(path, LABEL_KEY, context.encode(), follow_symlinks=False)
        except OSError as exc:
            raise CapabilityError(f"{path}: cannot set {LABEL_KEY}: {exc.strerror}",
                                  hint="run as root, in a container with CAP_SYS_ADMIN") from exc  # fmt: skip
        count += 1
    return count


def expected_labels(root: Path, target: Target) -> Iterator[tuple[Path, str]]:
    """Every entry that carries a context, once, and that context."""
    tops = dict(target.labelled(root))
    for top, context in tops.items():
        yield from ((path, context) for path in walk(top, without=tops.keys() - {top}))


def unlabelled(root: Path, target: Target) -> list[tuple[Path, str]]:
    """Entries without the context that they should carry, and that context."""
    return [(path, context) for path, context in expected_labels(root, target) if not has_label(path, context)]


def has_label(path: Path, context: str) -> bool:
    try:
        return os.getxattr(path, LABEL_KEY, follow_symlinks=False).rstrip(b"\0") == context.encode()
    except OSError:
        return False


def walk(top: Path, without: Collection[Path] = ()) -> Iterator[Path]:
    """`top` and everything below it but the folders `without` and what is in them, links not followed, in a fixed order."""
    yield top
    for folder, folders, files in os.walk(top):
        if without:
            folders[:] = [name for name in folders if Path(folder, name) not in without]
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
