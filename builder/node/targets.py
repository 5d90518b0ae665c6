"""The kinds of node that a disk is baked for: what each expects to find, and where.

    bottlerocket    its data volume: partition found by label, root of the file system holds var/, opt/ and mnt/
    al2023-volume   a second volume, file system on the whole disk, found by its label, mounted before containerd starts
    gke-secondary   a secondary boot disk of GKE: unpacked layers and two lists of them, no containerd root
    azure-data      a data disk, as al2023-volume, and a fixed VHD of it
    raw             any other node, as al2023-volume, without SELinux labels

Sources: Bottlerocket: twoliter `partyplanner`, bottlerocket-core-kit `prepare-local-fs.service`, `local.mount`,
`release-repart-local.conf`, `selinux-policy/rules.cil`. Amazon Linux 2023: its user guide, "SELinux modes" (enabled and
permissive by default), and container-selinux, `container.fc`, for the labels that its policy gives these paths. GKE:
ai-on-gke, gke-disk-image-builder, `script/startup.sh`. Azure's and other nodes run AppArmor or no policy: no labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from builder.errors import ConfigError
from builder.node.gpt import Partition, whole_disk

CONTAINERD = "var/lib/containerd"
MODELS = "var/lib/builder/models"
COMPILED = "var/lib/builder/compiled"
CACHE_TREES = (
    "io.containerd.content.v1.content",
    "io.containerd.metadata.v1.bolt",
    "io.containerd.snapshotter.v1.overlayfs",
)
FS_LABEL = "BUILDER-DATA"  # XFS labels have at most 12 bytes
# Bottlerocket's policy creates exactly these three trees as cache_t; pods may read and execute that type but not write
# it, root with a hostPath mount included (measured: denied with the label, written without).
_CACHE_T = "system_u:object_r:cache_t:s0"
# What restorecon would write below /var/lib/containerd. A label is kept by the inode, so the bind mount on the node shows
# it. On a node that enforces, unlabelled files would be unlabeled_t, which containers may not read. Weights: read and
# executed by containers, written by none.
_VAR_LIB_T, _FILE_T, _RO_FILE_T = (f"system_u:object_r:container_{name}_t:s0" for name in ("var_lib", "file", "ro_file"))
_AL2023 = {
    **{f"{CONTAINERD}/{tree}": _VAR_LIB_T for tree in CACHE_TREES},
    f"{CONTAINERD}/{CACHE_TREES[2]}/snapshots": _FILE_T,
    f"{MODELS}/*": _RO_FILE_T,
    f"{COMPILED}/*": _RO_FILE_T,
}
_BOTTLEROCKET = {
    **{f"{CONTAINERD}/{tree}": _CACHE_T for tree in CACHE_TREES},
    f"{MODELS}/*": _CACHE_T,
    f"{COMPILED}/*": _CACHE_T,
}


class Extent(Protocol):
    """A run of bytes on a disk."""

    @property
    def offset(self) -> int: ...

    @property
    def size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class WholeDisk:
    """A file system that begins with the disk; there is no partition table."""

    size: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class TableRow:
    """The only entry of a GPT. With the label, Bottlerocket's prepare-local-fs starts at once and both repart-data units are
    stopped; systemd-repart does not add it to a partition that need not grow, so it is written."""

    type_guid: str
    guid: str
    label: str


@dataclass(frozen=True, slots=True)
class Target:
    """table: None where the file system fills the disk. filesystem: made by default. label: of the file system, "" for none.

    contexts: SELinux context per tree, paths relative to the root of the file system, `*` for each entry of a folder; of two
    trees that contain a file the inner one decides. device: where the node has the disk.
    exports: suffixes of the forms that the cloud's image import takes instead of the raw disk.
    containerd_root: whether it holds a containerd root, weights and compile caches, or unpacked images alone.
    """

    name: str
    table: TableRow | None
    filesystem: str
    label: str
    device: str
    contexts: Mapping[str, str] = field(default_factory=dict)
    exports: tuple[str, ...] = ()
    containerd_root: bool = True

    def partition(self, size: int) -> Partition | None:
        """The entry of the table of a disk of `size` bytes, None where there is no table."""
        row = self.table
        return whole_disk(size, type_guid=row.type_guid, guid=row.guid, label=row.label) if row else None

    def extent(self, size: int) -> Extent:
        """Where the file system lies on a disk of `size` bytes."""
        return self.partition(size) or WholeDisk(size)

    def labelled(self, root: Path) -> list[tuple[Path, str]]:
        """Trees on the mounted volume whose every entry carries a context, with that context.

        models/ itself stays bare, so that a prefetch job may add a model beside the baked ones.
        """
        found = []
        for pattern, context in self.contexts.items():
            tops = sorted(root.glob(pattern)) if "*" in pattern else [root / pattern]
            found += [(top, context) for top in tops if top.is_dir()]
        return found


TARGETS = {
    target.name: target
    for target in (
        Target(
            "bottlerocket",
            TableRow("626f7474-6c65-6474-6861-726d61726b73", "5b94e8df-28b8-485c-9d19-362263b5944c", "BOTTLEROCKET-DATA"),
            "xfs",
            "",
            "/dev/xvdb",
            _BOTTLEROCKET,
        ),
        Target("al2023-volume", None, "xfs", FS_LABEL, "/dev/xvdb", _AL2023),
        Target("gke-secondary", None, "ext4", "", "secondary boot disk", exports=(".tar.gz",), containerd_root=False),
        Target("azure-data", None, "xfs", FS_LABEL, "data disk", exports=(".vhd",)),
        Target("raw", None, "xfs", FS_LABEL, "any disk"),
    )
}
BOTTLEROCKET = TARGETS["bottlerocket"]


def target(name: str) -> Target:
    """The target called `name`. Raises ConfigError for another word."""
    if name not in TARGETS:
        raise ConfigError(f"target {name!r}, expected one of {', '.join(TARGETS)}")
    return TARGETS[name]
