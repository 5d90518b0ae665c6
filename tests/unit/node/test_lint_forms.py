"""The same fault in every form of file in which a node's configuration is written."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from builder.node.lint import Disk, lint, open_disk, run
from tests.unit.node.test_lint import HERE

DIGEST = "sha256:" + "ab" * 32
TOML = '[settings.container-runtime]\nsnapshotter = "soci"\n'
MOUNT = "mount LABEL=BUILDER-DATA /var/lib/builder/volume"
MIME = (HERE / "bad" / "snapshotter-gate.mime").read_text().replace("\ntrue\n", f"\n{MOUNT}\n")
ALWAYS = {"name": "server", "image": f"registry.example.com/llm@{DIGEST}", "imagePullPolicy": "Always"}
POD = {"containers": [ALWAYS]}
TEMPLATE = {"template": {"spec": POD}}


def found(
    tmp_path: Path, body: str | dict[str, Any], *, name: str = "a.yaml", disk: Disk | None = None
) -> list[tuple[int, str]]:
    path = tmp_path / name
    path.write_text(body if isinstance(body, str) else json.dumps(body, indent="\t"))
    return [(f.line, f.rule) for f in lint([path], disk=disk)]


def rules(tmp_path: Path, body: str | dict[str, Any], *, name: str = "a.yaml") -> list[str]:
    return [rule for _, rule in found(tmp_path, body, name=name)]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("Pod", POD),
        ("Deployment", TEMPLATE),
        ("StatefulSet", TEMPLATE),
        ("DaemonSet", TEMPLATE),
        ("Job", TEMPLATE),
        ("Rollout", TEMPLATE),
        ("CronJob", {"jobTemplate": {"spec": TEMPLATE}}),
        ("InferenceService", {"predictor": POD}),
        ("InferenceService", {"predictor": {"model": {**ALWAYS, "modelFormat": {"name": "huggingface"}}}}),
        ("ServingRuntime", {**POD, "supportedModelFormats": []}),
        ("LLMInferenceService", {"prefill": {"template": POD}}),
        ("LeaderWorkerSet", {"leaderWorkerTemplate": {"workerTemplate": {"spec": POD}}}),
        ("RayCluster", {"workerGroupSpecs": [{"template": {"spec": POD}}]}),
        ("JobSet", {"replicatedJobs": [{"template": {"spec": TEMPLATE}}]}),
    ],
)
def test_pods_are_found_in_every_kind(tmp_path: Path, kind: str, spec: dict[str, Any]) -> None:
    assert rules(tmp_path, {"apiVersion": "x/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec}) == ["pull-always"]


@pytest.mark.parametrize("group", ["initContainers", "containers", "ephemeralContainers"])
def test_all_containers_of_a_pod_count(tmp_path: Path, group: str) -> None:
    assert rules(tmp_path, {"kind": "Pod", "spec": {group: [ALWAYS]}}) == ["pull-always"]


def test_an_image_volume_is_pulled_like_a_container(tmp_path: Path) -> None:
    volume = {"name": "weights", "image": {"reference": "registry.example.com/weights:v1", "pullPolicy": "Always"}}
    assert set(rules(tmp_path, {"kind": "Pod", "spec": {"containers": [], "volumes": [volume]}})) == {
        "pull-always",
        "no-digest",
    }


@pytest.mark.parametrize("kind", ["List", "DeploymentList", None])
def test_lists_are_opened_and_their_members_named(tmp_path: Path, kind: str | None) -> None:
    member = {"kind": "Deployment", "metadata": {"name": "llm"}, "spec": TEMPLATE}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"items": [member]} | ({"kind": kind} if kind else {})))
    (finding,) = lint([path])
    assert finding.where == "Deployment/llm: items[0].spec.template.spec.containers[0].imagePullPolicy"


def test_the_output_of_helm_with_several_documents(tmp_path: Path) -> None:
    head = "---\n# Source: llm/templates/a.yaml\nkind: Pod\nspec:\n  containers:\n"
    text = f"{head}  - image: a@{DIGEST}\n    imagePullPolicy: Always\n"
    assert found(tmp_path, text + text) == [(7, "pull-always"), (14, "pull-always")]


def test_a_template_that_helm_has_not_rendered_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("kind: Pod\nspec:\n{{- if .Values.gpu }}\n  a: {{ .Values.x }}\n{{- end }}\n")
    (finding,) = lint([path])
    assert (finding.rule, finding.severity) == ("unreadable", "warning")
    assert "helm template" in finding.message


def template(**more: Any) -> dict[str, Any]:
    disk = {"SnapshotId": "snap-0123456789abcdef0", "VolumeSize": 120, "VolumeInitializationRate": 300}
    return {"BlockDeviceMappings": [{"DeviceName": "/dev/xvdb", "Ebs": disk | more.pop("ebs", {})}], **more}


def packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (template(), []),
        (template(UserData=packed(TOML)), ["snapshotter"]),
        (template(UserData=packed(MIME)), ["snapshotter"]),
        (template(UserData=packed("#!/bin/sh\nmkfs.ext4 /dev/xvdb\n")), ["boot-wipes"]),
        (template(ebs={"VolumeSize": 100}), ["volume-size"]),
        (template(ebs={"Encrypted": True, "KmsKeyId": "alias/a"}), ["kms", "kms"]),
        (template(ebs={"VolumeInitializationRate": 50}), ["init-rate"]),
        (template(ImageId="resolve:ssm:/aws/service/bottlerocket/aws-k8s-1.35/x86_64/latest/image_id"), ["ami-latest"]),
        (template(UserData=packed("[settings")), ["unreadable"]),
    ],
)
@pytest.mark.parametrize("wrap", ["bare", "cli", "described", "cloudformation"])
def test_launch_templates(tmp_path: Path, data: dict[str, Any], expected: list[str], wrap: str) -> None:
    body = {
        "bare": data,
        "cli": {"LaunchTemplateName": "llm", "LaunchTemplateData": data},
        "described": {"LaunchTemplateVersions": [{"VersionNumber": 1, "LaunchTemplateData": data}]},
        "cloudformation": {
            "Resources": {"T": {"Type": "AWS::EC2::LaunchTemplate", "Properties": {"LaunchTemplateData": data}}}
        },
    }[wrap]
    findings = found(tmp_path, body, name="a.json", disk=Disk(120 << 30))
    assert [rule for _, rule in findings] == expected
    lines = (tmp_path / "a.json").read_text().splitlines()
    named = ("Encrypted", "KmsKeyId", "VolumeSize", "VolumeInitializationRate", "UserData", "ImageId")
    assert all(any(name in lines[line - 1] for name in named) for line, _ in findings)


def test_cloudformation_in_yaml_with_its_tags(tmp_path: Path) -> None:
    text = """Resources:
  Template:
    Type: AWS::EC2::LaunchTemplate
    Properties:
      LaunchTemplateData:
        BlockDeviceMappings:
          - DeviceName: /dev/xvdb
            Ebs: {SnapshotId: !Ref Snapshot, VolumeSize: 120, VolumeInitializationRate: 300}
        UserData:
          Fn::Base64: !Sub |
            [settings.container-runtime]
            snapshotter = "soci"
"""
    assert rules(tmp_path, text) == ["snapshotter"]


EKSCTL = """apiVersion: eksctl.io/v1alpha5
kind: ClusterConfig
metadata: {name: prod, region: us-west-2}
managedNodeGroups:
  - name: gpu
    amiFamily: Bottlerocket
    instanceTypes: [g6e.xlarge]
    additionalVolumes:
      - volumeName: /dev/xvdb
        volumeSize: 120
        snapshotID: snap-0123456789abcdef0
        volumeInitializationRate: 300
    bottlerocket:
      settings:
        container-runtime:
          max-concurrent-downloads: 10
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "rule"),
    [
        ("x", "x", 0, ""),
        ("volumeSize: 120", "volumeSize: 100", 10, "volume-size"),
        ("volumeSize: 120", "volumeEncrypted: true", 10, "kms"),
        ("/dev/xvdb", "/dev/xvda", 9, "device-name"),
        ("max-concurrent-downloads: 10", "snapshotter: soci", 16, "snapshotter"),
        ("instanceTypes: [g6e.xlarge]", "kubeletExtraConfig: {imageGCHighThresholdPercent: 70}", 7, "gc-thresholds"),
        ("amiFamily: Bottlerocket", "overrideBootstrapCommand: 'crictl rmi --prune'", 6, "boot-wipes"),
    ],
)
def test_node_groups_of_eksctl(tmp_path: Path, old: str, new: str, line: int, rule: str) -> None:
    expected = [(line, rule)] if rule else []
    assert found(tmp_path, EKSCTL.replace(old, new), disk=Disk(120 << 30)) == expected


def test_user_data_in_a_node_class_is_judged_only_where_the_volume_is_baked(tmp_path: Path) -> None:
    body = (HERE / "bad" / "snapshotter.yaml").read_text()
    assert rules(tmp_path, body) == ["snapshotter"]
    assert rules(tmp_path, body.replace("snapshotID:", "iops: 3000 #").replace("volumeInit", "# volumeInit")) == []


@pytest.mark.parametrize("text", ["#!/bin/sh", "MIME-Version: 1.0"])
def test_bottlerocket_takes_toml_only(tmp_path: Path, text: str) -> None:
    body = (HERE / "good" / "snapshotter.yaml").read_text()
    head, _, tail = body.partition("  userData: |")
    after = tail[tail.index("  blockDeviceMappings") :]
    assert rules(tmp_path, f"{head}  userData: '{text}'\n{after}") == ([] if text[0] == "#" else ["unreadable"])


def test_mime_without_its_parts_is_a_fault(tmp_path: Path) -> None:
    assert rules(tmp_path, "MIME-Version: 1.0\nContent-Type: multipart/mixed\n\nhello\n", name="user-data") == ["unreadable"]


def test_parts_of_mime_in_base64(tmp_path: Path) -> None:
    text = MIME.replace('us-ascii"', 'us-ascii"\nContent-Transfer-Encoding: base64').replace(
        f"#!/bin/bash\nset -euo pipefail\n{MOUNT}", packed("crictl rmi --prune")
    )
    assert rules(tmp_path, text, name="user-data") == ["snapshotter", "boot-wipes"]


def test_merge_keys_are_followed(tmp_path: Path) -> None:
    text = f"""kind: Pod
base: &base {{imagePullPolicy: Always}}
spec:
  containers:
    - <<: *base
      image: a@{DIGEST}
    - <<: [*base]
      image: a@{DIGEST}
      imagePullPolicy: Never
"""
    assert rules(tmp_path, text) == ["pull-always"]


@pytest.mark.parametrize(
    "family", ["m6g", "c7gn", "g5g.xlarge", "x2gd", "a1.large", "im4gn", "t4g", "p6e-gb200.36xlarge", "r8gd", "hpc7g"]
)
def test_graviton_and_grace_are_arm(family: str) -> None:
    from builder.node.lint.rules.pool import architecture

    assert architecture(family) == "arm64"


@pytest.mark.parametrize(
    "family", ["g6e.xlarge", "g4dn", "p5en.48xlarge", "m7i", "g4ad", "c7a", "gr6", "p6-b200", "inf2", "trn2"]
)
def test_other_families_are_amd64(family: str) -> None:
    from builder.node.lint.rules.pool import architecture

    assert architecture(family) == "amd64"


def pool(*requirements: dict[str, Any]) -> dict[str, Any]:
    template = {"spec": {"nodeClassRef": {"name": "gpu"}, "requirements": list(requirements)}}
    disruption = {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "1h"}
    return {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "spec": {"template": template, "disruption": disruption}}


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("In", ["amd64"], []),
        ("In", ["arm64"], ["mixed-arch"]),
        ("In", ["amd64", "arm64"], ["mixed-arch"]),
        ("NotIn", ["arm64"], []),
        ("NotIn", ["amd64"], ["mixed-arch"]),
        ("NotIn", ["s390x"], ["mixed-arch"]),
        ("Exists", [], ["mixed-arch"]),
    ],
)
def test_every_operator_on_the_architecture(tmp_path: Path, operator: str, values: list[str], expected: list[str]) -> None:
    body = pool({"key": "kubernetes.io/arch", "operator": operator, "values": values})
    disk = open_disk(HERE / "disk.img.json")
    assert [rule for _, rule in found(tmp_path, body, name="a.json", disk=disk)] == expected


@pytest.mark.parametrize(
    ("pattern", "covered"),
    [
        ("registry.example.com/llm/llama", True),
        ("registry.example.com/llm/*", True),
        ("registry.example.com/*", True),
        ("registry.example.com/llm", False),
        ("registry.example.com/llm/llam", False),
        ("registry.example.com/ll/*", False),
        ("llama", False),
    ],
)
def test_the_list_of_images_that_are_not_verified(tmp_path: Path, pattern: str, covered: bool) -> None:
    """Whole path segments: as kubelet's ValidateAllowlistImagesPatterns has it."""
    body = {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "imagePullCredentialsVerificationPolicy": "NeverVerifyAllowlistedImages",
            "preloadedImagesVerificationAllowlist": [pattern]}  # fmt: skip
    disk = open_disk(HERE / "disk.img.json")
    assert [rule for _, rule in found(tmp_path, body, disk=disk)] == ([] if covered else ["credential-recheck"])


def test_flags_of_kubelet_win_over_its_configuration(tmp_path: Path) -> None:
    text = """apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec:
  kubelet:
    config: {imageGCHighThresholdPercent: 90, imageGCLowThresholdPercent: 80}
    flags:
      - --node-labels=a=b
      - --image-gc-high-threshold=70
"""
    assert found(tmp_path, text) == [(8, "gc-thresholds")]
    assert found(tmp_path, text.replace("=70", "=95")) == []


@pytest.mark.parametrize("text", ["containerd:\n    config: '[a'", "containerd:\n    config: |\n      [a\n"])
def test_containerds_configuration_that_is_no_toml(tmp_path: Path, text: str) -> None:
    body = f"apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  {text}"
    assert found(tmp_path, body) == [(6 if "|" in text else 5, "unreadable")]


def test_two_classes_of_one_name_are_baked_if_one_is(tmp_path: Path) -> None:
    """Overlays of several clusters in one folder."""
    sound = (HERE / "good" / "raid0.yaml").read_text()
    mixed = (HERE / "bad" / "mixed-arch.yaml").read_text()
    assert rules(tmp_path, mixed + "---\n" + sound) == ["mixed-arch"]
    assert rules(tmp_path, sound + "---\n" + mixed) == ["mixed-arch"]


def test_a_schema_is_no_pod(tmp_path: Path) -> None:
    schema = {"default": {"containers": [ALWAYS]}}
    assert rules(tmp_path, {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": schema}) == []


@pytest.mark.parametrize(
    ("user_data", "expected"),
    [(TOML.replace("soci", "overlayfs"), ["device-name"]), (MIME.replace("true", "false"), []), ("", [])],
)
def test_the_system_of_a_launch_template_is_told_by_its_user_data(tmp_path: Path, user_data: str, expected: list[str]) -> None:
    data = template(UserData=packed(user_data))
    data["BlockDeviceMappings"][0]["DeviceName"] = "/dev/sdf"
    assert rules(tmp_path, data, name="a.json") == expected


def test_a_node_config_may_be_all_of_the_user_data(tmp_path: Path) -> None:
    """As Karpenter takes it for AL2023; lines count from the block in the manifest."""
    config = """
    apiVersion: node.eks.aws/v1alpha1
    kind: NodeConfig
    spec:
      featureGates:
        FastImagePull: true
"""
    body = (HERE / "good" / "raid0-al2023.yaml").read_text()
    head, _, tail = body.partition("  userData: |\n")
    after = tail[tail.index("  blockDeviceMappings") :]
    text = f"{head}  userData: |{config}{after}"
    expected = text.splitlines().index("        FastImagePull: true") + 1
    assert [one for one in found(tmp_path, text) if one[1] != "not-mounted"] == [(expected, "snapshotter")]
    broken = text.replace("kind: NodeConfig", "kind: [")
    assert [rule for _, rule in found(tmp_path, broken) if rule != "not-mounted"] == ["unreadable"]


def test_kubelet_of_a_node_class_is_judged_where_the_volume_is_baked(tmp_path: Path) -> None:
    options = "  kubelet: {imageGCHighThresholdPercent: 70, imageGCLowThresholdPercent: 80}\n  blockDeviceMappings:"
    body = (HERE / "good" / "kms.yaml").read_text().replace("  blockDeviceMappings:", options)
    assert rules(tmp_path, body) == ["gc-thresholds"]
    assert rules(tmp_path, body.replace("        snapshotID:", "        #").replace("        volumeInit", "        #")) == []


def test_a_node_group_without_a_baked_volume_may_do_as_it_likes(tmp_path: Path) -> None:
    text = EKSCTL.replace("max-concurrent-downloads: 10", "snapshotter: soci")
    assert rules(tmp_path, text) == ["snapshotter"]
    assert rules(tmp_path, text.replace("        snapshotID:", "        #").replace("        volumeInit", "        #")) == []


def test_nothing_to_judge_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: ConfigMap\napiVersion: v1\ndata: {containers: x}\n---\n" + EKSCTL)
    assert run([tmp_path]).understood == 2  # the machine, and its settings
    (tmp_path / "a.yaml").write_text("kind: ConfigMap\napiVersion: v1\ndata: {containers: x}\n")
    assert run([tmp_path]).understood == 0


def test_parts_of_mime_that_are_no_text_are_not_scripts(tmp_path: Path) -> None:
    text = MIME.replace("text/x-shellscript", "application/x-archive").replace(MOUNT, "crictl rmi --prune")
    assert rules(tmp_path, text, name="user-data") == ["snapshotter"]
