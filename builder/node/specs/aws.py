"""For AWS without Karpenter: a launch template, an eksctl node group on it, and what an uploader may do.

Sources: EC2 API reference, CreateLaunchTemplate (RequestLaunchTemplateData; UserData in base64) and EbsBlockDevice
(VolumeInitializationRate in MiB/s); eksctl's schema v1alpha5 and validation.go (a managed node group with a launch template may
not name instance type, volume or AMI; managed node groups take the AMI from amiFamily); EBS user guide, "Control access to EBS
direct APIs using IAM" (resources are arn:aws:ec2:REGION::snapshot/*) and "Requirements for Amazon EBS encryption" (KMS).
"""

from __future__ import annotations

import base64
from typing import Any

from builder.node.specs import user_data
from builder.node.specs.karpenter import GPU_TAINT
from builder.node.specs.ref import SnapshotRef, iops
from builder.node.specs.text import NONE, Hot, comment, hydration_lines, json_text, yaml_text

_FAMILY = {"bottlerocket": "Bottlerocket", "al2023-volume": "AmazonLinux2023"}


def files(ref: SnapshotRef, hot: Hot) -> dict[str, str]:
    return {
        ".launch-template.json": json_text(launch_template(ref, hot)),
        ".eksctl.yaml": eksctl(ref),
        ".iam-upload.json": json_text(upload_policy(ref)),
    }


def launch_template(ref: SnapshotRef, hot: Hot = NONE) -> dict[str, Any]:
    """The input of `aws ec2 create-launch-template --cli-input-json`. Image and instance type are the node group's."""
    tags = [{"Key": "Name", "Value": ref.name}, {"Key": "builder:content-sha256", "Value": ref.sha256}]
    root = {"VolumeSize": 4 if ref.target == "bottlerocket" else 20, "VolumeType": "gp3", "DeleteOnTermination": True}
    return {
        "LaunchTemplateName": ref.name,
        "VersionDescription": f"data volume {ref.sha256[:12]}",
        "LaunchTemplateData": {
            "BlockDeviceMappings": [
                {"DeviceName": "/dev/xvda", "Ebs": root},
                {"DeviceName": "/dev/xvdb", "Ebs": _data_disk(ref)},
            ],
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")],
            "UserData": base64.b64encode(user_data.of(ref, hot).encode()).decode(),
        },
        "TagSpecifications": [{"ResourceType": "launch-template", "Tags": tags}],
    }


def _data_disk(ref: SnapshotRef) -> dict[str, Any]:
    volume, filled = ref.settings.volume, ref.settings.hydrate
    disk: dict[str, Any] = {"SnapshotId": ref.id, "VolumeSize": ref.gib, "VolumeType": volume.type, "DeleteOnTermination": True}
    disk |= {"Iops": iops(ref.disk_bytes, volume)} if volume.type != "gp2" else {}
    disk |= {"Throughput": volume.throughput} if volume.type == "gp3" else {}
    return disk | ({"VolumeInitializationRate": filled.mib_per_s} if filled.mode == "rate" else {})


def eksctl(ref: SnapshotRef) -> str:
    group = {
        "name": ref.name.replace(".", "-"),
        "amiFamily": _FAMILY[ref.target],
        "instanceTypes": ["g6.2xlarge" if ref.arch == "amd64" else "g5g.2xlarge"],
        "minSize": 0,
        "desiredCapacity": 1,
        "maxSize": 4,
        "launchTemplate": {"id": "${LAUNCH_TEMPLATE_ID}", "version": "1"},
        "labels": {"builder/volume": ref.sha256[:12]},
        "taints": [{"key": GPU_TAINT, "value": "true", "effect": "NoSchedule"}],
    }
    config = {
        "apiVersion": "eksctl.io/v1alpha5",
        "kind": "ClusterConfig",
        "metadata": {"name": ref.cluster, "region": ref.region},
        "managedNodeGroups": [group],
    }
    holes = ["LAUNCH_TEMPLATE_ID", *([ref.cluster[2:-1]] if ref.cluster.startswith("${") else [])]
    note = comment(
        f"A managed node group whose data volume is the snapshot of {ref.file}.",
        *hydration_lines(ref),
        f"aws ec2 create-launch-template --cli-input-json file://{ref.file}.launch-template.json"
        " --query LaunchTemplate.LaunchTemplateId",
        f"{' '.join(f'{hole}=...' for hole in holes)} envsubst < THIS_FILE > group.yaml",
        "eksctl create nodegroup -f group.yaml",
    )
    return yaml_text(config, note=note)


def upload_policy(ref: SnapshotRef) -> dict[str, Any]:
    """What an upload through the EBS direct APIs needs, and no more: new snapshots under our tag, written, read back, found.

    No instance is started, so there is no ec2:RunInstances and no iam:PassRole.
    """
    snapshots = f"arn:aws:ec2:{ref.region}::snapshot/*"
    ours = {"StringLike": {"aws:ResourceTag/builder:content-sha256": "*"}}
    named = {"StringLike": {"aws:RequestTag/builder:content-sha256": "*"}}
    statements: list[dict[str, Any]] = [
        {"Sid": "Start", "Effect": "Allow", "Action": "ebs:StartSnapshot", "Resource": snapshots, "Condition": named},
        {
            "Sid": "WriteAndReadBack",
            "Effect": "Allow",
            "Action": ["ebs:PutSnapshotBlock", "ebs:CompleteSnapshot", "ebs:ListSnapshotBlocks", "ebs:ListChangedBlocks",
                       "ebs:GetSnapshotBlock"],
            "Resource": snapshots,
            "Condition": ours,
        },
        {"Sid": "Tag", "Effect": "Allow", "Action": "ec2:CreateTags", "Resource": snapshots, "Condition": named},
        {"Sid": "Find", "Effect": "Allow", "Action": "ec2:DescribeSnapshots", "Resource": "*"},
    ]  # fmt: skip
    if ref.kms_key:
        use = ["kms:DescribeKey", "kms:Decrypt", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
        statements += [
            {"Sid": "Key", "Effect": "Allow", "Action": use, "Resource": ref.kms_key},
            {"Sid": "KeyForEbs", "Effect": "Allow", "Action": "kms:CreateGrant", "Resource": ref.kms_key,
             "Condition": {"Bool": {"kms:GrantIsForAWSResource": "true"}}},
        ]  # fmt: skip
    return {"Version": "2012-10-17", "Statement": statements}
