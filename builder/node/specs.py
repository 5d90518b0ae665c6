"""What a cluster needs to use the disk: EC2NodeClass, user data, Packer variables, the record. Written beside it.

    OUT.img.json                      what was baked, and the hydration plan
    OUT.img.user-data.toml            Bottlerocket settings
    OUT.img.ec2nodeclass.yaml         Karpenter; ${...} is filled in by envsubst unless the value was given
    OUT.img.auto.pkrvars.json         variables of packer/aws/data-volume.pkr.hcl

Sources: Karpenter's CRD karpenter.k8s.aws_ec2nodeclasses.yaml (v1) and its documentation, "NodeClasses"; Bottlerocket's
documentation, settings.kubernetes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import render
from builder.config.spec import Bake
from builder.errors import ConfigError
from builder.node import hydrate
from builder.node.bake import DataVolume

GIB = 1 << 30
SNAPSHOT = "${SNAPSHOT_ID}"
CLUSTER = "${CLUSTER_NAME}"
GC_HIGH, GC_LOW = 85, 80  # kubelet's defaults
_WITH_IOPS, _WITH_THROUGHPUT = ("gp3", "io2"), ("gp3",)


@dataclass(frozen=True, slots=True)
class NodeSpecs:
    """Texts by file name suffix, and the hydration plan in them."""

    files: dict[str, str]
    hydration: hydrate.Hydration

    def write(self, disk: Path) -> list[Path]:
        """The files, beside `disk`. Returns their paths."""
        paths = []
        for suffix, text in self.files.items():
            path = disk.with_name(disk.name + suffix)
            path.write_text(text)
            paths.append(path)
        return paths


def node_specs(volume: DataVolume, bake: Bake, *, name: str, snapshot_id: str = SNAPSHOT,
               cluster: str = CLUSTER) -> NodeSpecs:  # fmt: skip
    """Everything for `volume`. name: of the EC2NodeClass.

    snapshot_id, cluster: literal values; left out, the files hold ${SNAPSHOT_ID} and ${CLUSTER_NAME} for envsubst.
    Raises ConfigError for a snapshot id that is none.
    """
    if snapshot_id != SNAPSHOT and not snapshot_id.startswith("snap-"):
        raise ConfigError(f"{snapshot_id!r} is not a snapshot id", hint="it begins with snap-")
    plan = hydrate.plan(volume.nonzero_bytes, volume.size, mode=bake.hydrate.mode, mib_per_s=bake.hydrate.mib_per_s)
    settings = user_data(volume.path.name, volume.used)
    manifest = ec2_node_class(volume, bake, name=name, snapshot_id=snapshot_id, cluster=cluster, settings=settings)
    variables = packer_variables(volume, bake, name=name)
    record = {"volume": volume.to_json(), "hydration": plan.to_json()}
    return NodeSpecs(
        {
            ".json": json.dumps(record, indent=2) + "\n",
            ".user-data.toml": settings,
            ".ec2nodeclass.yaml": _yaml(manifest, _apply_note(volume.path.name, snapshot_id, cluster)),
            ".auto.pkrvars.json": json.dumps(variables, indent=2) + "\n",
        },
        plan,
    )


def user_data(disk: str, used: float) -> str:
    """Bottlerocket's TOML. Thresholds stay above what is full from the start: else kubelet would collect for ever."""
    percent = round(used * 100)
    low = max(GC_LOW, min(percent + 5, 94))
    return render.text(
        "node/user-data.toml.j2", disk=disk, used_percent=percent, gc_low=low, gc_high=max(GC_HIGH, min(low + 5, 99))
    )


def ec2_node_class(
    volume: DataVolume, bake: Bake, *, name: str, snapshot_id: str, cluster: str, settings: str
) -> dict[str, Any]:
    """Karpenter's object. The data disk is /dev/xvdb; no `encrypted`, which the CRD's text excludes with snapshotID."""
    discovery = [{"tags": {"karpenter.sh/discovery": cluster}}]
    data: dict[str, Any] = {"snapshotID": snapshot_id, "volumeSize": f"{volume.size // GIB}Gi", "volumeType": bake.volume.type}
    data |= {"iops": iops(volume.size, bake)} if bake.volume.type in _WITH_IOPS else {}
    data |= {"throughput": bake.volume.throughput} if bake.volume.type in _WITH_THROUGHPUT else {}
    data |= {"volumeInitializationRate": bake.hydrate.mib_per_s} if bake.hydrate.mode == "rate" else {}
    data |= {"deleteOnTermination": True}
    system = {"volumeSize": "4Gi", "volumeType": "gp3", "deleteOnTermination": True}
    return {
        "apiVersion": "karpenter.k8s.aws/v1",
        "kind": "EC2NodeClass",
        "metadata": {"name": name, "annotations": {"builder/content-sha256": volume.sha256}},
        "spec": {
            "amiFamily": "Bottlerocket",
            "amiSelectorTerms": [{"alias": f"bottlerocket@{bake.os_version}"}],
            "role": f"KarpenterNodeRole-{cluster}",
            "subnetSelectorTerms": discovery,
            "securityGroupSelectorTerms": discovery,
            "blockDeviceMappings": [{"deviceName": "/dev/xvda", "ebs": system}, {"deviceName": "/dev/xvdb", "ebs": data}],
            "userData": settings,
        },
    }


def iops(size: int, bake: Bake) -> int:
    """bake.volume.iops, within what a gp3 volume of `size` bytes may have: 3000 at least, 500 per GiB at most.

    Source: EC2 user guide, "General Purpose SSD volumes".
    """
    return max(3000, min(bake.volume.iops, 500 * (size // GIB))) if bake.volume.type == "gp3" else bake.volume.iops


def packer_variables(volume: DataVolume, bake: Bake, *, name: str) -> dict[str, Any]:
    """Values for the variables that packer/aws/data-volume.pkr.hcl declares."""
    image = volume.images[0] if volume.images else {"reference": "", "digest": ""}
    return {
        "name": name,
        "region": bake.region or "us-east-1",
        "disk_file": str(volume.path.resolve()),
        "volume_size": volume.size // GIB,
        "volume_type": bake.volume.type,
        "iops": iops(volume.size, bake),
        "throughput": bake.volume.throughput,
        "builder_size": 16 + -(-2 * volume.nonzero_bytes // GIB),
        "content_sha256": volume.sha256,
        "image_reference": image["reference"],
        "image_digest": image["digest"],
    }


def packer_1_6(template: str) -> str:
    """The Packer template without the lines between `# packer >= 1.8` and `# end`, so that Packer 1.6 can validate it.

    Distributions still carry 1.6, the last release before its plugins were split off.
    """
    kept, skip = [], False
    for line in template.splitlines(keepends=True):
        mark = line.strip()
        skip = skip or mark == "# packer >= 1.8"
        if not skip:
            kept.append(line)
        skip = skip and mark != "# end"
    return "".join(kept)


def _apply_note(disk: str, snapshot_id: str, cluster: str) -> str:
    lines = [f"# Nodes whose data volume is the snapshot of {disk}. instanceStorePolicy: RAID0 would hide it."]
    names = [text[2:-1] for text in (snapshot_id, cluster) if text in (SNAPSHOT, CLUSTER)]
    if names:
        given = " ".join(f"{n}=..." for n in names)
        only = " ".join(f"${{{n}}}" for n in names)
        lines.append(f"# {given} envsubst '{only}' < THIS_FILE | kubectl apply -f -")
    return "\n".join(lines) + "\n"


def _yaml(manifest: dict[str, Any], note: str) -> str:
    import yaml  # not needed to bake

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # no &anchors: kubectl takes them, people do not

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return note + yaml.dump(manifest, Dumper=Dumper, sort_keys=False, width=120)
