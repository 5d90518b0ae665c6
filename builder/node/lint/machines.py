"""Machines out of an EC2NodeClass, a ClusterConfig of eksctl and a launch template of EC2.

Names: Karpenter's CRD karpenter.k8s.aws_ec2nodeclasses.yaml (v1); the eksctl user guide, "Additional Volume Mappings" and
"Custom AMIs"; the EC2 API reference, LaunchTemplateEbsBlockDeviceRequest.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator

from builder.node.lint.facts import AL2023, BOTTLEROCKET, Machine, Volume
from builder.node.lint.part import Part

GIB = 1 << 30
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": GIB, "Ti": 1 << 40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_FAMILIES = {"bottlerocket": BOTTLEROCKET, "al2023": AL2023, "amazonlinux2023": AL2023, "amazon-linux-2023": AL2023}


def node_class(root: Part) -> Machine:
    """An EC2NodeClass. Its mappings say `ebs`, sizes are quantities."""
    spec = root.at("spec")
    images = [term.at(name) for term in spec.at("amiSelectorTerms").each() for name in ("alias", "ssmParameter", "name", "id")]
    named = tuple(image for image in images if image.text)
    volumes = tuple(
        _volume(one.at("ebs"), one.at("deviceName"), "snapshotID", "volumeSize", "encrypted", "kmsKeyID", _quantity)
        for one in spec.at("blockDeviceMappings").each()
    )
    name = str(root.at("metadata", "name").raw or "")
    system, text = _os(spec.at("amiFamily"), named), decoded(spec.at("userData"))[0]
    return Machine(root, name, system, volumes, named, spec.at("instanceStorePolicy"), text)


def node_groups(root: Part) -> Iterator[Machine]:
    """The node groups of a ClusterConfig."""
    for group in (*root.at("nodeGroups").each(), *root.at("managedNodeGroups").each()):
        volumes = tuple(
            _volume(one, one.at("volumeName"), "snapshotID", "volumeSize", "volumeEncrypted", "volumeKmsKeyID", _gib)
            for one in group.at("additionalVolumes").each()
        )
        images = tuple(part for part in (group.at("ami"),) if part.text)
        name, system = str(group.at("name").raw or ""), _os(group.at("amiFamily"), images)
        text = "\n".join(part.text for part in commands(group))
        yield Machine(group, name, system, volumes, images, group.at("instanceStorePolicy"), text)


def commands(group: Part) -> tuple[Part, ...]:
    """What a node group of eksctl runs at boot."""
    return (group.at("overrideBootstrapCommand"), *group.at("preBootstrapCommands").each())


def launch_templates(root: Part) -> Iterator[Machine]:
    """In what the CLI takes and gives, and in CloudFormation: wherever BlockDeviceMappings stand or UserData does."""
    for data in root.walk():
        if not isinstance(data.raw, dict) or not ({"BlockDeviceMappings", "UserData"} & data.raw.keys()):
            continue
        volumes = tuple(
            _volume(one.at("Ebs"), one.at("DeviceName"), "SnapshotId", "VolumeSize", "Encrypted", "KmsKeyId", _gib)
            for one in data.at("BlockDeviceMappings").each()
        )
        images = tuple(part for part in (data.at("ImageId"),) if part.text)
        text = decoded(data.at("UserData"))[0]
        system = _os(data.at("ImageId"), images) or _os_of_text(text)
        yield Machine(data, "", system, volumes, images, data.at("InstanceStorePolicy"), text)


def decoded(part: Part) -> tuple[str, bool]:
    """User data as text, out of base64 where it is, and whether it was; "" if it is neither.

    CloudFormation's Fn::Base64 and Fn::Sub are looked through.
    """
    while isinstance(part.raw, dict) and len(part.raw) == 1 and next(iter(part.raw)) in ("Fn::Base64", "Fn::Sub"):
        part = part.at(next(iter(part.raw)))
    while isinstance(part.raw, list) and part.raw:
        part = part.at(0)
    text = part.text
    try:
        return base64.b64decode("".join(text.split()), validate=True).decode(), True
    except (binascii.Error, ValueError):
        return text, False


def quantity(value: object) -> int | None:
    """Bytes of a Kubernetes quantity such as 120Gi; None if it is none.

    >>> quantity("120Gi") == 120 << 30, quantity("120"), quantity("${SIZE}")
    (True, 120, None)
    """
    text = str(value)
    for unit, factor in _UNITS.items():
        digits = text.removesuffix(unit)
        if digits != text and digits.isascii() and digits.isdigit() and len(digits) < 20:
            return int(digits) * factor
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _quantity(part: Part) -> int | None:
    return quantity(part.raw)


def _gib(part: Part) -> int | None:
    number = part.number
    return int(number) * GIB if number is not None else None


def _volume(
    ebs: Part, device: Part, snapshot: str, size: str, encrypted: str, kms: str, read: Callable[[Part], int | None]
) -> Volume:
    rate = "VolumeInitializationRate" if snapshot == "SnapshotId" else "volumeInitializationRate"
    sized = ebs.at(size)
    return Volume(ebs, device, ebs.at(snapshot), sized, read(sized), ebs.at(rate), ebs.at(encrypted), ebs.at(kms))


def _os(family: Part, images: tuple[Part, ...]) -> str:
    if found := _FAMILIES.get(family.text.lower()):
        return found
    named = (system for image in images for name, system in _FAMILIES.items() if name in image.text.lower())
    return next(named, "")


def _os_of_text(text: str) -> str:
    if "[settings" in text or text.startswith("settings."):
        return BOTTLEROCKET
    return AL2023 if "node.eks.aws" in text else ""
