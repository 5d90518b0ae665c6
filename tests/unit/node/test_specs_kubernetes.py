"""Objects for Kubernetes against the schemas and CEL rules of their kinds; and that those refuse a broken one."""

from __future__ import annotations

import copy
import email
import email.policy
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml

from builder.config.spec import Bake, Hydrate, Volume
from builder.node.specs import karpenter
from tests import crds
from tests.specs import IDS, hot_texts, made, ref

AWS = ("bottlerocket", "al2023-volume")
CUSTOM = ("EC2NodeClass", "NodePool", "ClusterConfig", "VolumeSnapshot", "VolumeSnapshotContent")


def documents(files: dict[str, str]) -> Iterator[dict[str, Any]]:
    for suffix, text in files.items():
        if suffix.endswith(".yaml"):
            yield from yaml.safe_load_all(text)


def faults(document: dict[str, Any]) -> list[str]:
    """By the kind's schema: ours for custom kinds, Kubernetes' own for the others."""
    return crds.check(document) if document["kind"] in CUSTOM else list(core_faults(json.dumps(document)))


@cache
def core_faults(text: str) -> tuple[str, ...]:
    """Remembered, since a validation reads the schemas anew each time, and most of our objects are the same in every test."""
    try:
        kubernetes_validate.validate(json.loads(text), "1.34", strict=True)
    except kubernetes_validate.ValidationError as exc:
        return (str(exc.message),)
    return ()


@pytest.mark.parametrize("mode", ["none", "rate", "fsr"])
@pytest.mark.parametrize("kind", ["gp3", "gp2", "io2"])
@pytest.mark.parametrize("target", AWS)
def test_every_object_is_valid(target: str, kind: Literal["gp3", "gp2", "io2"], mode: Literal["none", "rate", "fsr"]) -> None:
    bake = Bake(volume=Volume(type=kind), hydrate=Hydrate(mode=mode))
    for files in (made(target, bake), made(target, bake, snapshot_id=IDS[target], cluster="prod", platform="linux/arm64")):
        found = list(documents(files))
        assert [fault for one in found for fault in faults(one)] == []
        kinds = [
            "EC2NodeClass",
            "NodePool",
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "DaemonSet",
            "ClusterConfig",
        ]
        assert [one["kind"] for one in found] == kinds


def test_the_volumes_of_weights_are_valid() -> None:
    found = list(documents(made("gke-secondary")))
    assert [one["kind"] for one in found] == [
        "StorageClass",
        "VolumeSnapshotContent",
        "VolumeSnapshot",
        "PersistentVolumeClaim",
    ]
    assert [fault for one in found for fault in faults(one)] == []
    _, content, snapshot, claim = found
    assert snapshot["spec"]["source"]["volumeSnapshotContentName"] == content["metadata"]["name"]
    assert claim["spec"]["dataSource"]["name"] == snapshot["metadata"]["name"]
    assert content["spec"]["deletionPolicy"] == "Retain"  # the claim's end is not the weights' end


def _at(document: dict[str, Any], path: str) -> tuple[Any, Any]:
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    for step in steps:
        document = document[step]
    return document, last


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        inside, last = _at(document, path)
        inside[last] = value

    return change


def drop(path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        inside, last = _at(document, path)
        del inside[last]

    return change


DATA = "spec/blockDeviceMappings/1/ebs"
NODE = "spec/template/spec"
BROKEN = [
    ("EC2NodeClass", put(f"{DATA}/volumeInitializationRate", 400)),
    ("EC2NodeClass", put("spec/blockDeviceMappings/0/ebs/volumeInitializationRate", 300)),
    ("EC2NodeClass", put(f"{DATA}/snapshotId", "snap-1")),
    ("EC2NodeClass", put(f"{DATA}/volumeSize", "120GiB")),
    ("EC2NodeClass", put(f"{DATA}/volumeType", "gp9")),
    ("EC2NodeClass", put(f"{DATA}/iops", "6000")),
    ("EC2NodeClass", put("spec/blockDeviceMappings/0/ebs", {"volumeType": "gp3"})),
    ("EC2NodeClass", put("spec/instanceProfile", "also")),
    ("EC2NodeClass", drop("spec/role")),
    ("EC2NodeClass", drop("spec/subnetSelectorTerms")),
    ("EC2NodeClass", put("spec/subnetSelectorTerms/0/tags", {"": "a"})),
    ("EC2NodeClass", put("spec/amiFamily", "AL2")),
    ("EC2NodeClass", put("spec/amiSelectorTerms/0/alias", "debian@v1")),
    ("EC2NodeClass", put("spec/amiSelectorTerms/0/alias", "bottlerocket")),
    ("NodePool", put("spec/disruption/consolidateAfter", "1d")),
    ("NodePool", put("spec/disruption/consolidationPolicy", "Never")),
    ("NodePool", put("spec/disruption/budgets/0/duration", "10m")),
    ("NodePool", put("spec/disruption/budgets/0/reasons", ["Old"])),
    ("NodePool", put(f"{NODE}/requirements/0/operator", "In ")),
    ("NodePool", put(f"{NODE}/requirements/0/values", [])),
    ("NodePool", put(f"{NODE}/requirements/0/key", "karpenter.k8s.aws/instance-gpus")),
    ("NodePool", put(f"{NODE}/requirements/0/key", "karpenter.sh/nodepool")),
    ("NodePool", put(f"{NODE}/startupTaints/0/effect", "NoStart")),
    ("NodePool", put(f"{NODE}/startupTaint", [])),
    ("NodePool", put(f"{NODE}/expireAfter", "30d")),
    ("NodePool", drop(f"{NODE}/nodeClassRef")),
    ("DaemonSet", drop("spec/selector")),
    ("DaemonSet", put("spec/template/spec/initContainers/0/imagePullPolicies", "Never")),
    ("ClusterRole", put("rules/0/verb", ["get"])),
    ("ClusterConfig", put("managedNodeGroups/0/instanceType", "g6.xlarge")),
    ("ClusterConfig", put("managedNodeGroups/0/launchTemplate", {"version": "1"})),
    ("ClusterConfig", put("managedNodeGroups/0/launchTemplate/version", "latest")),
    ("VolumeSnapshotContent", put("spec/deletionPolicy", "Keep")),
    ("VolumeSnapshotContent", put("spec/source/volumeHandle", "also")),
    ("VolumeSnapshotContent", drop("spec/volumeSnapshotRef")),
    ("VolumeSnapshot", put("spec/source/persistentVolumeClaimName", "also")),
    ("PersistentVolumeClaim", put("spec/accessMode", ["ReadOnlyMany"])),
    ("StorageClass", drop("provisioner")),
]


@pytest.mark.parametrize(("kind", "change"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_object_is_refused(kind: str, change: Callable[[dict[str, Any]], None]) -> None:
    whole = next(one for target in ("bottlerocket", "gke-secondary") for one in documents(made(target)) if one["kind"] == kind)
    broken = copy.deepcopy(whole)
    change(broken)
    assert faults(broken), "the validator took it"
    assert faults(whole) == []


def test_an_object_of_an_unknown_kind_is_refused() -> None:
    assert crds.check({"apiVersion": "a/v1", "kind": "B"}) == ["no schema of B a/v1"]


@pytest.mark.parametrize("target", AWS)
def test_the_disk_is_where_the_node_looks_and_nothing_hides_it(target: str) -> None:
    spec = karpenter.node_class(ref(target))["spec"]
    assert [one["deviceName"] for one in spec["blockDeviceMappings"]] == ["/dev/xvda", "/dev/xvdb"]
    assert "encrypted" not in spec["blockDeviceMappings"][1]["ebs"]
    assert "instanceStorePolicy" not in spec
    assert not spec["amiSelectorTerms"][0]["alias"].endswith("@latest")


@pytest.mark.parametrize(("platform", "arch"), [("linux/amd64", "amd64"), ("linux/arm64", "arm64")])
def test_nodes_have_the_architecture_of_the_disk(platform: str, arch: str) -> None:
    needs = karpenter.node_pool(ref(platform=platform))["spec"]["template"]["spec"]["requirements"]
    assert {"key": "kubernetes.io/arch", "operator": "In", "values": [arch]} in needs


def test_the_gate_starts_what_was_baked_and_takes_the_taint_that_the_pool_gives() -> None:
    one = ref()
    taint = karpenter.node_pool(one)["spec"]["template"]["spec"]["startupTaints"][0]["key"]
    daemon = karpenter.gate(one)[-1]["spec"]["template"]["spec"]
    assert [(c["image"], c["imagePullPolicy"]) for c in daemon["initContainers"]] == [
        (karpenter.by_digest(*one.images[0]), "Never")
    ]
    assert f'kubectl taint nodes "$NODE_NAME" {taint}-' in daemon["containers"][0]["command"][-1]
    labels = karpenter.node_pool(one)["spec"]["template"]["metadata"]["labels"]
    assert daemon["nodeSelector"].items() <= labels.items()


@pytest.mark.parametrize("hot", [{}, hot_texts("al2023-volume")], ids=["plain", "hot"])
def test_al2023s_user_data_is_mime_with_a_valid_node_config(hot: dict[str, str]) -> None:
    files = made("al2023-volume", hot=hot)
    message = email.message_from_string(files[".user-data.txt"], policy=email.policy.default)
    assert not message.defects
    parts = list(message.iter_parts())
    assert [part.get_content_type() for part in parts] == ["application/node.eks.aws", "text/x-shellscript"]
    config = yaml.safe_load(parts[0].get_payload(decode=True))
    assert crds.check(config) == []
    config["spec"]["kubelet"]["config"]["imageGCLowThresholdPercent"] = 99
    assert crds.check(config)
    assert parts[1].get_payload(decode=True).decode().strip() == files[".setup.sh"].strip()
    assert files[".user-data.txt"].isascii()  # the part says us-ascii
