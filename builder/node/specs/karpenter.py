"""Karpenter: EC2NodeClass and NodePool, and the gate that takes the start-up taint away.

Sources: the CRDs karpenter.k8s.aws_ec2nodeclasses.yaml and karpenter.sh_nodepools.yaml (aws/karpenter-provider-aws 1.14),
fields and rules; Karpenter's documentation, "NodePools" (start-up taints are expected to go; pods need not tolerate them to
have a node made) and "Disruption" (defaults: WhenEmptyOrUnderutilized, after 0 s, any node after 720 h).
"""

from __future__ import annotations

import re
from typing import Any

from builder.errors import ConfigError
from builder.node.specs import user_data
from builder.node.specs.ref import SnapshotRef, iops
from builder.node.specs.text import NONE, Hot, apply_line, comment, hydration_lines, yaml_text

AL2023_RELEASE = "v20260714"  # awslabs/amazon-eks-ami, CHANGELOG.md
TAINT = "builder/volume-unproven"
GPU_TAINT = "nvidia.com/gpu"
_WITH_IOPS, _WITH_THROUGHPUT = ("gp3", "io2"), ("gp3",)


def files(ref: SnapshotRef, hot: Hot) -> dict[str, str]:
    about = comment(
        f"Nodes whose data volume is the snapshot of {ref.file}. instanceStorePolicy: RAID0 would hide it.",
        *hydration_lines(ref),
    )
    pool = comment(
        f"GPU nodes from EC2NodeClass {ref.name}. They are spared: a node goes only when it has been empty for half an hour.",
        f"The taint {TAINT} goes when a node has shown that the images are on it: apply the gate too, or remove startupTaints.",
    )
    return {
        ".ec2nodeclass.yaml": yaml_text(node_class(ref, hot), note=about + apply_line(ref)),
        ".nodepool.yaml": yaml_text(node_pool(ref), note=pool),
        **({".gate.yaml": gate_text(ref)} if ref.images else {}),
    }


def node_class(ref: SnapshotRef, hot: Hot = NONE) -> dict[str, Any]:
    """The EC2NodeClass. The data disk is /dev/xvdb; no `encrypted`, which the CRD's text excludes with snapshotID."""
    discovery = [{"tags": {"karpenter.sh/discovery": ref.cluster}}]
    family = "Bottlerocket" if ref.target == "bottlerocket" else "AL2023"
    system = {"volumeSize": "4Gi" if family == "Bottlerocket" else "20Gi", "volumeType": "gp3", "deleteOnTermination": True}
    return {
        "apiVersion": "karpenter.k8s.aws/v1",
        "kind": "EC2NodeClass",
        "metadata": {"name": ref.name, "annotations": {"builder/content-sha256": ref.sha256}},
        "spec": {
            "amiFamily": family,
            "amiSelectorTerms": [{"alias": f"{family.lower()}@{release(ref)}"}],
            "role": f"KarpenterNodeRole-{ref.cluster}",
            "subnetSelectorTerms": discovery,
            "securityGroupSelectorTerms": discovery,
            "blockDeviceMappings": [
                {"deviceName": "/dev/xvda", "ebs": system},
                {"deviceName": "/dev/xvdb", "ebs": _data_disk(ref)},
            ],
            "userData": user_data.of(ref, hot),
        },
    }


def _data_disk(ref: SnapshotRef) -> dict[str, Any]:
    volume, filled = ref.settings.volume, ref.settings.hydrate
    data: dict[str, Any] = {"snapshotID": ref.id, "volumeSize": f"{ref.gib}Gi", "volumeType": volume.type}
    data |= {"iops": iops(ref.disk_bytes, volume)} if volume.type in _WITH_IOPS else {}
    data |= {"throughput": volume.throughput} if volume.type in _WITH_THROUGHPUT else {}
    data |= {"volumeInitializationRate": filled.mib_per_s} if filled.mode == "rate" else {}
    return data | {"deleteOnTermination": True}


def release(ref: SnapshotRef) -> str:
    """The pinned release of the node's system. Raises ConfigError for one in another system's style."""
    said = ref.settings.os_version
    dated = bool(re.fullmatch(r"v\d{8}", said))
    if ref.target == "bottlerocket":
        if dated:
            raise ConfigError(f"os_version {said} is a release of AL2023; expected one such as v1.62.0")
        return said
    return said if dated else AL2023_RELEASE


def node_pool(ref: SnapshotRef) -> dict[str, Any]:
    """The NodePool: machines of the disk's architecture, with NVIDIA GPUs, kept warm."""
    requirements = [
        {"key": "kubernetes.io/arch", "operator": "In", "values": [ref.arch]},
        {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]},
        {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["on-demand"]},
        {"key": "karpenter.k8s.aws/instance-gpu-manufacturer", "operator": "In", "values": ["nvidia"]},
    ]
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": ref.name},
        "spec": {
            "template": {
                "metadata": {"labels": {"builder/volume": ref.sha256[:12]}},
                "spec": {
                    "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": ref.name},
                    "requirements": requirements,
                    "taints": [{"key": GPU_TAINT, "value": "true", "effect": "NoSchedule"}],
                    "startupTaints": [{"key": TAINT, "value": "true", "effect": "NoSchedule"}],
                    "expireAfter": "720h",
                },
            },
            "limits": {"nvidia.com/gpu": 8},
            "disruption": {
                "consolidationPolicy": "WhenEmpty",
                "consolidateAfter": "30m",
                # A new snapshot drifts every node; one at a time.
                "budgets": [{"nodes": "1", "reasons": ["Drifted"]}, {"nodes": "1", "reasons": ["Empty"]}],
            },
        },
    }


def gate_text(ref: SnapshotRef) -> str:
    """The gate: a DaemonSet that starts each baked image with pulls forbidden, and takes the taint away when they all ran."""
    note = comment(
        f"Takes the taint {TAINT} from a node once each baked image has started there with imagePullPolicy Never.",
        "A node on which the cache is missing keeps the taint, and its pod says ErrImageNeverPull.",
        "KUBECTL_IMAGE: any image with sh and kubectl. An image without /bin/true needs another command.",
    )
    return yaml_text(*gate(ref), note=note + comment(
        "KUBECTL_IMAGE=... envsubst '${KUBECTL_IMAGE}' < THIS_FILE | kubectl apply -f -"))  # fmt: skip


def gate(ref: SnapshotRef) -> tuple[dict[str, Any], ...]:
    name, space = f"{ref.name}-gate", "kube-system"
    account = {"name": name, "namespace": space}
    script = (
        'keys=$(kubectl get node "$NODE_NAME" -o jsonpath="{.spec.taints[*].key}")\n'
        f'case "$keys" in *{TAINT}*) kubectl taint nodes "$NODE_NAME" {TAINT}- ;; esac\n'
        "exec sleep infinity\n"
    )
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]}]
    small = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}}
    return (
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", **account}],
        },
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": account,
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "serviceAccountName": name,
                        "nodeSelector": {"builder/volume": ref.sha256[:12]},
                        "tolerations": [{"operator": "Exists"}],
                        "initContainers": [
                            {
                                "name": f"image-{number}",
                                "image": by_digest(*image),
                                "imagePullPolicy": "Never",
                                "command": ["/bin/true"],
                                "resources": small,
                            }
                            for number, image in enumerate(ref.images)
                        ],
                        "containers": [
                            {
                                "name": "untaint",
                                "image": "${KUBECTL_IMAGE}",
                                "imagePullPolicy": "IfNotPresent",
                                "command": ["sh", "-euc", script],
                                "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                                "resources": small,
                            }
                        ],
                    },
                },
            },
        },
    )


def by_digest(reference: str, digest: str) -> str:
    """`repository@sha256:...`: the tag left off, a registry's port kept.

    >>> by_digest("localhost:5000/a/b:v1", "sha256:00")
    'localhost:5000/a/b@sha256:00'
    """
    head, slash, last = reference.split("@")[0].rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}@{digest}"
