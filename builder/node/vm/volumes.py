"""How a node finds a baked volume and where it mounts it, by target."""

from __future__ import annotations

from dataclasses import dataclass

from builder.errors import ConfigError
from builder.node.targets import CONTAINERD, MODELS, Target

OPTIONS = "nosuid,nodev,noatime"  # Bottlerocket's local.mount; the mount unit that we render for others says the same


@dataclass(frozen=True, slots=True)
class Volume:
    """tag: what it is found by, as findfs spells it. point: where it is mounted.

    binds: folder on the volume and where the node has it, in order.
    """

    tag: str
    point: str
    binds: tuple[tuple[str, str], ...]


def volume_of(target: Target) -> Volume:
    """Raises ConfigError for a target whose disk holds no containerd root (gke-secondary)."""
    if target.table:  # Bottlerocket's local.mount, then var.mount, opt.mount and mnt.mount
        return Volume(f"PARTLABEL={target.table.label}", "/local", (("var", "/var"), ("opt", "/opt"), ("mnt", "/mnt")))
    if not target.label:
        raise ConfigError(f"a {target.name} disk is not started in a virtual machine: it holds no containerd root",
                          hint="verify it without --vm")  # fmt: skip
    binds = tuple((folder, f"/{folder}") for folder in (CONTAINERD, MODELS))
    return Volume(f"LABEL={target.label}", "/var/lib/builder/volume", binds)
