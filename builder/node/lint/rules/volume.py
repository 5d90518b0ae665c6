"""Rules on volumes and machines: what is attached, where, how large, and what hides it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from builder.node.lint.facts import AL2023, BOTTLEROCKET, Facts, Machine, Volume
from builder.node.lint.part import Part
from builder.node.lint.rule import Hit, Rule
from builder.node.targets import FS_LABEL
from builder.units import format_size

GIB = 1 << 30
RATES = range(100, 301)  # MiB/s that EBS takes
_CONTAINERD = "/var/lib/containerd"
_PLACEHOLDER = re.compile(r"\$\{|\{\{|^<|^\$[A-Z]")
_MOUNTED = re.compile(rf"{FS_LABEL}|{_CONTAINERD}(?:[\s\"'/]|$)")
_ROOT = ("/dev/xvda", "/dev/sda1")
_ENCRYPTED = ("encrypted-storage", "ephemeral-encryption-keys")


def _raid0(facts: Facts) -> Iterator[Hit]:
    for machine in facts.machines:
        policy = machine.store_policy
        if machine.seeded and policy.text in ("RAID0", "RAID10"):
            severity = "warning" if machine.os == AL2023 else ""
            yield Hit(policy, f"instanceStorePolicy {policy.text} puts {_CONTAINERD} on the local disks", severity)
    for settings in facts.settings:
        for one in settings.at("settings", "bootstrap-commands").each():
            for command in one.at("commands").each():
                if _binds(command):
                    yield Hit(
                        one.at("commands"), f"`apiclient ephemeral-storage bind` covers {_CONTAINERD} with an empty folder"
                    )
    for config in facts.node_configs:
        storage = config.at("spec", "instance", "localStorage")
        spared = [mount.raw for mount in storage.at("disabledMounts").each()]
        if storage.at("strategy").text.startswith("RAID") and "Containerd" not in spared:
            message = f"localStorage.strategy {storage.at('strategy').text} moves {_CONTAINERD} to the local disks"
            yield Hit(storage.at("strategy"), message, "warning")


def _binds(command: Part) -> bool:
    words = [str(word.raw) for word in command.each()] or command.text.split()
    if words[:3] != ["apiclient", "ephemeral-storage", "bind"]:
        return False
    return "--dirs" not in words or any(word.rstrip("/") in (_CONTAINERD, "/var/lib", "/var") for word in words)


def _init_rate(facts: Facts) -> Iterator[Hit]:
    for _, volume in facts.volumes:
        rate, number = volume.rate, volume.rate.number
        if rate.there and _PLACEHOLDER.search(str(rate.raw)):
            continue
        if rate.there and not volume.seeded:
            yield Hit(rate, "a volume initialization rate without a snapshot is refused by EC2")
        if rate.there and (number is None or number not in RATES):
            yield Hit(rate, f"the volume initialization rate is {rate.raw!r}; expected 100 to 300 MiB/s")
        if volume.seeded and not rate.there and not _of_the_os(volume):
            yield Hit(volume.snapshot, "no volume initialization rate: every block is loaded on first touch", "warning")


def _of_the_os(volume: Volume) -> bool:
    return volume.device.text in _ROOT


def _volume_size(facts: Facts) -> Iterator[Hit]:
    for _, volume in facts.volumes:
        if volume.seeded and volume.size_bytes is not None and 0 < volume.size_bytes < facts.disk.size_bytes:
            needed = f"{-(-facts.disk.size_bytes // GIB)} GiB"
            found = format_size(volume.size_bytes)
            yield Hit(volume.size, f"the volume has {found}, the disk {format_size(facts.disk.size_bytes)}; at least {needed}")


def _kms(facts: Facts) -> Iterator[Hit]:
    for _, volume in facts.volumes:
        if not volume.seeded:
            continue
        if volume.encrypted.there:
            yield Hit(volume.encrypted, "`encrypted` beside a snapshot: the snapshot decides")
        if volume.kms.raw:
            yield Hit(volume.kms, "another key than the snapshot's: who launches nodes must be granted the use of both keys")


def _snapshot_id(facts: Facts) -> Iterator[Hit]:
    for _, volume in facts.volumes:
        text = str(volume.snapshot.raw)
        if volume.seeded and not text.startswith("snap-") and not _PLACEHOLDER.search(text) and not _intrinsic(volume.snapshot):
            yield Hit(volume.snapshot, f"{text!r} is no snapshot id")


def _intrinsic(part: Part) -> bool:
    """CloudFormation's Ref and friends, and `resolve:ssm:`."""
    return isinstance(part.raw, dict) or not re.match(r"(vol|ami|snapshot|arn)\b|/", part.text)


def _device_name(facts: Facts) -> Iterator[Hit]:
    for machine, volume in facts.volumes:
        device = volume.device.text
        if not volume.seeded or not device or not machine.os:
            continue
        if device in _ROOT:
            yield Hit(volume.device, f"the snapshot is attached as {device}, in place of the operating system")
        elif machine.os == BOTTLEROCKET and device != "/dev/xvdb":
            yield Hit(
                volume.device, f"the snapshot is attached as {device}; Bottlerocket's data volume is /dev/xvdb", "warning"
            )


def _ami_latest(facts: Facts) -> Iterator[Hit]:
    for machine in facts.machines:
        for image in machine.images if machine.seeded else ():
            if image.text.endswith("@latest") or re.search(r"/(latest|recommended)/", image.text):
                yield Hit(image, f"{image.text}: nodes get another containerd and kubelet the day one is released")


def _encrypted_local_fs(facts: Facts) -> Iterator[Hit]:
    for variant in facts.variants:
        features = variant.at("package", "metadata", "build-variant", "image-features")
        for name in _ENCRYPTED:
            if features.at(name).raw is True:
                yield Hit(features.at(name), f"a variant with {name} formats the data partition that it finds unencrypted")
    for machine in facts.machines:
        yield from _encrypted_image(machine)


def _encrypted_image(machine: Machine) -> Iterator[Hit]:
    for image in machine.images if machine.seeded and machine.os == BOTTLEROCKET else ():
        if re.search(r"encrypted-(storage|local)|ephemeral-encryption", image.text):
            yield Hit(image, f"{image.text}: a variant of that name formats the data partition that it finds unencrypted")


def _target(facts: Facts) -> Iterator[Hit]:
    target = facts.disk.target
    for machine, volume in facts.volumes:
        if not volume.seeded or not target or _of_the_os(volume):
            continue
        takes = {BOTTLEROCKET: (BOTTLEROCKET,), AL2023: ("al2023-volume", "raw")}.get(machine.os)
        if takes is not None and target not in takes:
            yield Hit(volume.snapshot, f"the disk was baked for {target}, and the node is {machine.os}, which takes {takes[0]}")


def _not_mounted(facts: Facts) -> Iterator[Hit]:
    for machine, volume in facts.volumes:
        if machine.os == AL2023 and volume.seeded and not _of_the_os(volume) and not _MOUNTED.search(machine.user_data):
            yield Hit(
                volume.snapshot, f"nothing in the user data mounts the volume: neither {FS_LABEL} nor {_CONTAINERD} is in it"
            )


RULES = (
    Rule(
        "raid0", "error", "the instance store in place of the data volume",
        "Bottlerocket binds an empty folder of the local disks over /var/lib/containerd, so nothing baked is seen; "
        "Amazon Linux 2023 copies the folder there at boot, which reads every block of the snapshot.",
        "Remove it, or leave /var/lib/containerd out: other folders in --dirs, `disabledMounts: [Containerd]`.",
        "bottlerocket-core-kit, apiclient ephemeral_storage.rs; Karpenter, bootstrap/bottlerocket.go; amazon-eks-ami, nodeadm "
        "LocalStorageOptions and setup-local-disks",
        _raid0,
    ),
    Rule(
        "init-rate", "error", "the rate at which blocks arrive",
        "A block of a new volume is loaded when first touched, at a few MiB/s. A rate is 100 to 300 MiB/s, with a snapshot.",
        "volumeInitializationRate: 300 beside snapshotID, or Fast Snapshot Restore.",
        "Karpenter's EC2NodeClass CRD; EBS user guide, volume initialization; bottlerocket-images-cache issue 13",
        _init_rate,
    ),
    Rule(
        "volume-size", "error", "a volume smaller than the disk (`--disk`)",
        "EC2 refuses a volume smaller than its snapshot, so no node starts.",
        "Name at least the size of the disk.",
        "EC2 API reference, CreateVolume, Size",
        _volume_size,
    ),
    Rule(
        "kms", "warning", "encryption stated beside a snapshot",
        "The volume has the encryption of its snapshot, and EC2's reference allows no value beside one; with another key every "
        "launch needs grants on both.",
        "Encrypt the snapshot (copy it with the key), and state nothing here.",
        "EC2 API reference, LaunchTemplateEbsBlockDeviceRequest, Encrypted; Karpenter's EC2NodeClass CRD",
        _kms, ("encrypted",),
    ),
    Rule(
        "snapshot-id", "error", "a snapshot named by something else",
        "The field takes the literal id of a snapshot; Karpenter has no selector for it.",
        "Write the id, snap-..., of this region.",
        "Karpenter's EC2NodeClass CRD, blockDeviceMappings.ebs.snapshotID",
        _snapshot_id,
    ),
    Rule(
        "device-name", "error", "the snapshot attached where the node does not look",
        "Bottlerocket looks for its data on /dev/xvdb and boots from /dev/xvda; in place of the root device nothing boots.",
        "deviceName: /dev/xvdb.",
        "Karpenter, amifamily/bottlerocket.go; bottlerocket-core-kit, prepare-local-fs.service",
        _device_name,
    ),
    Rule(
        "target", "error", "a disk for another kind of node (`--disk`)",
        "Bottlerocket finds its data by the label of a partition, other nodes by that of the file system; a node that does not "
        "find it starts with an empty store and says nothing.",
        "Bake with --target for this node, or use the node that the disk was baked for.",
        "docs/bake.md; bottlerocket-core-kit, prepare-local-fs.service",
        _target,
    ),
    Rule(
        "not-mounted", "warning", "a volume that an Amazon Linux node does not mount",
        "EC2 attaches the volume and nothing more: containerd starts with an empty folder on the root volume.",
        "Take the user data that is written beside the disk, or see that the machine image has the same mount units.",
        "amazon-eks-ami, nodeadm: only instance stores are mounted; docs/bake.md",
        _not_mounted,
    ),
    Rule(
        "ami-latest", "warning", "a machine image that changes by itself",
        "A release may change containerd, its snapshotter or the kubelet under the baked store, on every node at once.",
        "Pin it, such as bottlerocket@v1.62.0, and prove the disk with the containerd of a new one first.",
        "Karpenter, \"NodeClasses\", amiSelectorTerms; bottlerocket-images-cache issue 20",
        _ami_latest,
    ),
    Rule(
        "encrypted-local-fs", "error", "a Bottlerocket variant that encrypts its data partition",
        "It formats a data partition that is not encrypted yet, with a key that only this machine has; nothing baked survives.",
        "Use a variant without encrypted-storage and ephemeral-encryption-keys, and encrypt the EBS snapshot.",
        "bottlerocket-core-kit, encrypt-local-fs.service and its documentation of encrypted storage",
        _encrypted_local_fs,
    ),
)  # fmt: skip
