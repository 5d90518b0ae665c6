"""What a cluster, a cloud's command line or Packer needs to use a baked disk, rendered from one SnapshotRef beside the disk.

Which files a target has is the table FILES below; docs/bake-specs.md says what each is for. ${SNAPSHOT_ID} and ${CLUSTER_NAME}
stand for what is not known yet: envsubst fills them in, or `builder bake specs OUT.img.json --snapshot-id ID` writes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from builder.config.spec import Bake
from builder.errors import ConfigError
from builder.node import hydrate
from builder.node.bake import DataVolume
from builder.node.hot import hotlist, reader
from builder.node.specs import aws, azure, gke, karpenter, packer, user_data
from builder.node.specs.ref import (
    CLUSTER,
    SNAPSHOT,
    Record,
    SnapshotRef,
    check_asked,
    object_name,
    read_record,
    record,
    snapshot_ref,
)
from builder.node.specs.text import NONE, Hot

__all__ = [
    "BOUND", "CLUSTER", "SNAPSHOT", "NodeSpecs", "Record", "SnapshotRef", "check_asked", "hot_texts", "node_specs",
    "read_record", "record", "render", "snapshot_ref",
]  # fmt: skip

# What sends the disk beside it to a cloud, under the digest of the content that it had: right for that content only.
BOUND = (".json", ".auto.pkrvars.json", ".gke.sh", ".azure.sh")

Render = Callable[[SnapshotRef, Hot], dict[str, str]]

FILES: dict[str, tuple[Render, ...]] = {
    "bottlerocket": (user_data.bottlerocket, karpenter.files, aws.files, packer.files),
    "al2023-volume": (user_data.al2023, karpenter.files, aws.files, user_data.units, packer.files),
    "gke-secondary": (gke.files, packer.files),
    "azure-data": (user_data.units, azure.files, packer.files),
    "raw": (user_data.units,),
}


@dataclass(frozen=True, slots=True)
class NodeSpecs:
    """Texts by file name suffix, and the hydration plan in them."""

    files: dict[str, str]
    hydration: hydrate.Hydration

    def write(self, disk: Path) -> list[Path]:
        """The files, beside `disk`. Returns their paths."""
        paths = []
        for suffix, text in self.files.items():
            path = disk.parent / (disk.name + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if suffix.endswith(".sh"):
                path.chmod(0o755)
            paths.append(path)
        return paths


def node_specs(volume: DataVolume, bake: Bake, *, name: str, snapshot_id: str = SNAPSHOT, cluster: str = CLUSTER,
               kms_key: str = "", hot: Hot = NONE) -> NodeSpecs:  # fmt: skip
    """Everything for a volume just baked, the record OUT.img.json among it. name: of the objects.

    snapshot_id, cluster: literal values; left out, the files hold ${SNAPSHOT_ID} and ${CLUSTER_NAME}.
    hot: see render. Raises ConfigError for values that the target cannot have.
    """
    said = volume.to_json()
    ref = snapshot_ref(said, bake, name=object_name(name), snapshot_id=snapshot_id, cluster=cluster, kms_key=kms_key)
    return NodeSpecs({".json": record(ref, said)} | render(ref, hot=hot), ref.hydration)


def hot_texts(path: Path, ref: SnapshotRef, image: str = "") -> Hot:
    """What reads the blocks that the list at `path` names. image: for Bottlerocket's bootstrap container.

    Raises ConfigError for another file, IntegrityError for the list of another disk.
    """
    found = hotlist.read(path).of_disk(ref.sha256, ref.path)
    return reader.files(found, ref.file, image=image or reader.IMAGE)


def render(ref: SnapshotRef, *, hot: Hot = NONE) -> dict[str, str]:
    """Texts by file name suffix, of everything but the record.

    hot: what reads the hot blocks at boot, of a list of this disk: it goes into Bottlerocket's user data, and elsewhere is one
    more unit. GKE nodes take neither. Raises ConfigError for them, and for user data that EC2 would refuse for its size.
    """
    if hot and ref.target == "gke-secondary":
        raise ConfigError("hot blocks for gke-secondary: its nodes take no unit and no bootstrap container",
                          hint="leave the hot list out")  # fmt: skip
    texts: dict[str, str] = {}
    for one in FILES[ref.target]:
        texts |= one(ref, hot)
    return texts
