"""SnapshotRef: a baked disk where a cloud has it, or will have it. All that the files of a cluster are rendered from.

It comes from a bake, or from the record OUT.img.json that the bake wrote, so that the files can be rendered again once the
cloud has given the disk its id. Until then the id is ${SNAPSHOT_ID}, which envsubst fills in.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.config.spec import Bake, Volume
from builder.errors import ConfigError
from builder.node import hydrate, targets

RECORD = "builder.disk/1"
SNAPSHOT = "${SNAPSHOT_ID}"
CLUSTER = "${CLUSTER_NAME}"
GIB = 1 << 30
AWS = ("bottlerocket", "al2023-volume")

# cloud: what an id of it looks like, as a pattern and in words.
# Sources: EC2 user guide, "Resource IDs" (8 or 17 hexadecimal digits); Compute Engine, "Resource names"; Azure Resource
# Manager, "Resource ID"; lengths of names from the same pages.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,78}[A-Za-z0-9_])?"
_IDS = {
    "AWS": (r"snap-(?:[0-9a-f]{8}|[0-9a-f]{17})", "snap- and 17 hexadecimal digits"),
    "Google Cloud": (r"(?:projects/[a-z][a-z0-9:.-]{4,62}/)?global/(?:images|snapshots)/[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?",
                     "projects/PROJECT/global/images/NAME"),
    "Azure": (r"/subscriptions/[0-9A-Fa-f-]{36}/resourceGroups/[^/\s]{1,90}/providers/Microsoft\.Compute/"
              rf"(?:disks/{_NAME}|snapshots/{_NAME}|galleries/{_NAME}/images/{_NAME}/versions/\d+\.\d+\.\d+)",
              "/subscriptions/UUID/resourceGroups/GROUP/providers/Microsoft.Compute/snapshots/NAME"),
}  # fmt: skip
_CLOUD = {"bottlerocket": "AWS", "al2023-volume": "AWS", "gke-secondary": "Google Cloud", "azure-data": "Azure"}
_PLACEHOLDER = re.compile(r"\$\{[A-Z][A-Z0-9_]*\}")
_ARCH = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    """A disk, and how a volume made from it shall be.

    id: as the cloud names it, or ${SNAPSHOT_ID}. target: see builder.node.targets. name: of the objects to render.
    path: of the disk. filesystem: xfs or ext4. disk_bytes: its size. nonzero_bytes, sha256: as in blocks.py. used: 0 to 1.
    images: (reference, digest) of each. weights: (manifest digest, bytes) of each. platform: "linux/amd64".
    kms_key: ARN of the key that the snapshot is encrypted with, "" for none. settings: region, kind and speed of the volume.
    hydration: how its blocks get there.
    """

    id: str
    target: str
    name: str
    path: Path
    filesystem: str
    disk_bytes: int
    nonzero_bytes: int
    used: float
    sha256: str
    images: tuple[tuple[str, str], ...]
    weights: tuple[tuple[str, int], ...]
    platform: str
    cluster: str
    settings: Bake
    hydration: hydrate.Hydration
    kms_key: str = ""

    @property
    def file(self) -> str:
        return self.path.name

    @property
    def gib(self) -> int:
        return self.disk_bytes // GIB

    @property
    def arch(self) -> str:
        """As Kubernetes says it: amd64 or arm64."""
        return self.platform.split("/")[1]

    @property
    def machine(self) -> str:
        """As kernels and clouds say it: x86_64 or aarch64."""
        return _ARCH[self.arch]

    @property
    def region(self) -> str:
        return self.settings.region or "us-east-1"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "target": self.target,
            "name": self.name,
            "path": str(self.path),
            "filesystem": self.filesystem,
            "disk_bytes": self.disk_bytes,
            "nonzero_bytes": self.nonzero_bytes,
            "used": self.used,
            "sha256": self.sha256,
            "images": [{"reference": r, "digest": d} for r, d in self.images],
            "weights": dict(self.weights),
            "platform": self.platform,
            "cluster": self.cluster,
            "region": self.region,
            "kms_key": self.kms_key,
            "hydration": self.hydration.to_json(),
        }


def snapshot_ref(volume: dict[str, Any], settings: Bake, *, name: str, snapshot_id: str = SNAPSHOT,
                 cluster: str = CLUSTER, kms_key: str = "") -> SnapshotRef:  # fmt: skip
    """The ref of a volume, given as DataVolume.to_json says it.

    Raises ConfigError: an id that is none or another cloud's, a key that is none, a speed that no volume has.
    """
    target = targets.target(volume["target"]).name
    check_asked(settings, target, snapshot_id=snapshot_id, cluster=cluster)
    _check_name("name", name, r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", "lower case, digits, dots and hyphens")
    if kms_key and not re.fullmatch(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:(key|alias)/[A-Za-z0-9/_-]+", kms_key):
        raise ConfigError(f"{kms_key!r} is not the ARN of a KMS key", hint="arn:aws:kms:REGION:ACCOUNT:key/ID")
    if target in AWS:
        plan = hydrate.plan(volume["nonzero_bytes"], volume["size"], mode=settings.hydrate.mode,
                            mib_per_s=settings.hydrate.mib_per_s)  # fmt: skip
    else:
        plan = hydrate.elsewhere(volume["nonzero_bytes"])
    platforms = {str(image.get("platform") or "linux/amd64") for image in volume["images"]} or {"linux/amd64"}
    if len(platforms) > 1 or next(iter(platforms)).split("/")[1] not in _ARCH:
        raise ConfigError(f"platforms {', '.join(sorted(platforms))}; expected one of linux/amd64, linux/arm64")
    return SnapshotRef(
        id=snapshot_id,
        target=target,
        name=name,
        path=Path(volume["path"]).absolute(),
        filesystem=volume["filesystem"],
        disk_bytes=volume["size"],
        nonzero_bytes=volume["nonzero_bytes"],
        used=volume["used"],
        sha256=volume["sha256"],
        images=tuple((image["reference"], image["digest"]) for image in volume["images"]),
        weights=tuple(volume["weights"].items()),
        platform=platforms.pop(),
        cluster=cluster,
        settings=settings,
        hydration=plan,
        kms_key=kms_key,
    )


def check_asked(settings: Bake, target: str, *, snapshot_id: str = SNAPSHOT, cluster: str = CLUSTER) -> None:
    """What can be refused before a disk is baked. Raises ConfigError as snapshot_ref does."""
    check_id(snapshot_id, target)
    if not _PLACEHOLDER.fullmatch(cluster):
        _check_name("cluster", cluster, r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", "letters, digits, underscores and hyphens")
    if target in AWS:
        check_speed(settings.volume)


def _check_name(what: str, text: str, pattern: str, words: str) -> None:
    if not re.fullmatch(pattern, text):
        raise ConfigError(f"{what}: {text!r} is not a name; expected {words}")


def object_name(text: str) -> str:
    """`text` as the name of a Kubernetes object, where nobody gave one: of a file.

    >>> object_name("My disk_2"), object_name("--")
    ('my-disk-2', 'disk')
    """
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())[:63].strip("-.") or "disk"


def check_id(text: str, target: str) -> None:
    """Raises ConfigError unless `text` is an id of the target's cloud, or a ${PLACEHOLDER}. raw takes any word."""
    cloud = _CLOUD.get(target)
    if _PLACEHOLDER.fullmatch(text) or (cloud is None and re.fullmatch(r"\S+", text)):
        return
    pattern, words = _IDS.get(cloud or "", (r"\S+", "a word without spaces"))
    if re.fullmatch(pattern, text):
        return
    other = next((name for name, (other, _) in _IDS.items() if re.fullmatch(other, text)), "")
    found = f"an id of {other}" if other else "not a snapshot id"
    raise ConfigError(f"{text!r} is {found}; a disk for {target} has {words}", hint="give the id that the upload printed")


def check_speed(volume: Volume) -> None:
    """Raises ConfigError for what EC2 would refuse when the node is launched, long after this.

    Source: EBS user guide, "General Purpose SSD volumes" and "Provisioned IOPS SSD volumes": gp3 has 3000 to 80000
    operations per second and at most 0.25 MiB/s for each; io2 has 100 to 256000. The range by size is in iops().
    """
    if volume.type == "gp3" and volume.iops > 80_000:
        raise ConfigError(f"gp3 with {volume.iops} operations per second; expected at most 80000", hint="use io2 above that")
    if volume.type == "gp3" and 4 * volume.throughput > max(3000, volume.iops):
        raise ConfigError(
            f"gp3 with {volume.throughput} MiB/s and {max(3000, volume.iops)} operations per second;"
            " expected 4 operations for each MiB/s",
            hint=f"set bake.volume.iops to {4 * volume.throughput}, or less throughput",
        )


def iops(size: int, volume: Volume) -> int:
    """volume.iops, within what a volume of `size` bytes may have: gp3 3000 at least and 500 per GiB at most, io2 1000 per GiB.

    Source: as check_speed.
    """
    gib = size // GIB
    return max(3000, min(volume.iops, 500 * gib)) if volume.type == "gp3" else max(100, min(volume.iops, 1000 * gib))


def record(ref: SnapshotRef, volume: dict[str, Any]) -> str:
    """The text of OUT.img.json: what was baked, and the settings to render with."""
    chosen = ref.settings
    settings = {
        "region": chosen.region,
        "os_version": chosen.os_version,
        "volume": {"type": chosen.volume.type, "iops": chosen.volume.iops, "throughput": chosen.volume.throughput},
        "hydrate": {"mode": chosen.hydrate.mode, "mib_per_s": chosen.hydrate.mib_per_s},
    }
    data = {
        "kind": RECORD,
        "name": ref.name,
        "volume": volume,
        "settings": settings,
        "hydration": ref.hydration.to_json(),
    }
    return json.dumps(data, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Record:
    """OUT.img.json, read back. volume: as DataVolume.to_json says it. settings: raw, to be overridden and then checked."""

    name: str
    volume: dict[str, Any]
    settings: dict[str, Any]


def read_record(path: Path) -> Record:
    """The record at `path`. Raises ConfigError, with what was found, for anything else."""
    hint = "give the OUT.img.json that bake disk wrote"
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", hint=hint) from None
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: not JSON: {exc}", hint=hint) from exc
    kind = raw.get("kind") if isinstance(raw, dict) else type(raw).__name__
    if kind != RECORD:
        raise ConfigError(f"{path}: kind {kind!r}; expected {RECORD!r}", hint=hint)
    try:
        found = Record(raw["name"], raw["volume"], raw["settings"])
        _check_volume(found)
    except (KeyError, TypeError, AttributeError) as exc:
        raise ConfigError(f"{path}: not a whole record: {type(exc).__name__} at {exc}", hint=hint) from exc
    return found


def _check_volume(found: Record) -> None:
    """Raises KeyError or TypeError unless what snapshot_ref reads is there and of its kind."""
    kinds: dict[str, Any] = {
        "path": str,
        "target": str,
        "filesystem": str,
        "size": int,
        "nonzero_bytes": int,
        "used": (int, float),
        "sha256": str,
        "images": list,
        "weights": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(found.volume[name], kind):
            raise TypeError(f"volume.{name}")
    for image in found.volume["images"]:
        if not isinstance(image["reference"] + image["digest"], str):
            raise TypeError("volume.images")
    if not (isinstance(found.name, str) and isinstance(found.settings, dict)):
        raise TypeError("name, settings")
