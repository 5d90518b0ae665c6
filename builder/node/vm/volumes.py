"""How a node finds a baked volume and where it mounts it, by target."""

from __future__ import annotations

from dataclasses import dataclass

from builder.errors import ConfigError
from builder.node.targets import CONTAINERD, MODELS, Target


@dataclass(frozen=True, slots=True)
class Bind:
    """folder: on the volume. point: where the node has it. needed: False if a volume may lack it."""

    folder: str
    point: str
    readonly: bool = False
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Volume:
    """tag: what it is found by, as findfs spells it. point, options: where and how it is mounted. binds: in order."""

    tag: str
    point: str
    options: str
    binds: tuple[Bind, ...]


def volume_of(target: Target) -> Volume:
    """Raises ConfigError for a target whose disk holds no containerd root (gke-secondary).

    Bottlerocket: core-kit's local.mount, then var.mount, opt.mount and mnt.mount. Others: our templates/node/units.
    """
    if target.table:
        same = tuple(Bind(name, f"/{name}") for name in ("var", "opt", "mnt"))
        return Volume(f"PARTLABEL={target.table.label}", "/local", "nosuid,nodev,noatime", same)
    if not target.containerd_root:
        raise ConfigError(f"a {target.name} disk is not started in a virtual machine: it holds no containerd root",
                          hint="verify it without --vm")  # fmt: skip
    binds = (Bind(CONTAINERD, f"/{CONTAINERD}"), Bind(MODELS, f"/{MODELS}", readonly=True, needed=False))
    return Volume(f"LABEL={target.label}", "/var/lib/builder/volume", "noatime", binds)
