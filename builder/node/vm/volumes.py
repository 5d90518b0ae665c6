"""How a node finds a baked volume and where it mounts it, by target."""

from __future__ import annotations

from dataclasses import dataclass

from builder.errors import ConfigError

OPTIONS = "nosuid,nodev,noatime"  # Bottlerocket's local.mount; the mount units that we render for others say the same


@dataclass(frozen=True, slots=True)
class Volume:
    """tag: what it is found by, as findfs spells it. point: where it is mounted.

    binds: folder on the volume and where the node has it, in order.
    """

    tag: str
    point: str
    binds: tuple[tuple[str, str], ...]


BOTTLEROCKET = Volume(
    tag="PARTLABEL=BOTTLEROCKET-DATA",
    point="/local",
    binds=(("var", "/var"), ("opt", "/opt"), ("mnt", "/mnt")),  # var.mount, opt.mount, mnt.mount
)
BY_LABEL = Volume(
    tag="LABEL=BUILDER-DATA",
    point="/var/lib/builder/volume",
    binds=(("var/lib/containerd", "/var/lib/containerd"), ("var/lib/builder/models", "/var/lib/builder/models")),
)
VOLUMES = {"bottlerocket": BOTTLEROCKET, "al2023-volume": BY_LABEL, "azure-data": BY_LABEL, "raw": BY_LABEL}


def volume_of(target: str) -> Volume:
    """Raises ConfigError for a target whose disk no containerd mounts by itself."""
    if target not in VOLUMES:
        raise ConfigError(f"--vm: a {target} disk is not started in a virtual machine, expected one of {', '.join(VOLUMES)}",
                          hint="verify it without --vm")  # fmt: skip
    return VOLUMES[target]
