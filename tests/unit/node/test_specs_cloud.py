"""Launch template, IAM policy and ARM template: what EC2's API takes, what an upload may do, what holds together."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ParamValidationError

from builder.node.specs import aws
from tests.servers import ec2
from tests.specs import IDS, made, ref

# --- AWS -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ec2.running() as found:
        yield found


@pytest.fixture
def client(url: str) -> Any:
    return boto3.client("ec2", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y")


@pytest.mark.parametrize("target", ["bottlerocket", "al2023-volume"])
def test_ec2_takes_the_launch_template(target: str, client: Any) -> None:
    files = made(target, snapshot_id=IDS[target])
    given = json.loads(files[".launch-template.json"]) | {"LaunchTemplateName": target}
    made_id = client.create_launch_template(**given)["LaunchTemplate"]["LaunchTemplateId"]
    (version,) = client.describe_launch_template_versions(LaunchTemplateId=made_id)["LaunchTemplateVersions"]
    found = version["LaunchTemplateData"]
    data = found["BlockDeviceMappings"][1]
    assert (data["DeviceName"], data["Ebs"]["SnapshotId"], data["Ebs"]["VolumeSize"]) == ("/dev/xvdb", IDS[target], 120)
    assert data["Ebs"]["VolumeInitializationRate"] == 300
    user = base64.b64decode(found["UserData"]).decode()
    assert user == files[".user-data.toml" if target == "bottlerocket" else ".user-data.txt"]


def test_a_broken_launch_template_is_refused(client: Any) -> None:
    broken = copy.deepcopy(aws.launch_template(ref()))
    broken["LaunchTemplateData"]["BlockDeviceMappings"][1]["Ebs"]["InitializationRate"] = 300
    with pytest.raises(ParamValidationError, match="InitializationRate"):
        client.create_launch_template(**broken)


# What an upload may do. Sources: Service Authorization Reference, "Amazon Elastic Block Store", "Amazon EC2", "AWS KMS".
UPLOAD = {
    "ebs:StartSnapshot", "ebs:PutSnapshotBlock", "ebs:CompleteSnapshot", "ebs:ListSnapshotBlocks", "ebs:ListChangedBlocks",
    "ebs:GetSnapshotBlock", "ec2:CreateTags", "ec2:DescribeSnapshots",
}  # fmt: skip
KEY = {
    "kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
}  # fmt: skip
ONLY_STAR = {"ec2:DescribeSnapshots"}  # has no resource of its own to name


def too_broad(policy: dict[str, Any], allowed: set[str]) -> list[str]:
    """Every way in which the policy says more than `allowed`, on more than one kind of resource, or nothing at all."""
    found: list[str] = [] if policy["Version"] == "2012-10-17" else ["version"]
    for one in policy["Statement"]:
        actions = [one["Action"]] if isinstance(one["Action"], str) else one["Action"]
        found += [action for action in actions if action not in allowed]
        if "*" in (one["Resource"], *one["Resource"].split(":")) and not set(actions) <= ONLY_STAR:
            found.append(f"{one['Sid']}: {one['Resource']}")
        if set(one) - {"Sid", "Effect", "Action", "Resource", "Condition"} or one["Effect"] != "Allow":
            found.append(f"{one['Sid']}: not a statement")
    return found


@pytest.mark.parametrize("key", ["", "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"])
def test_the_policy_allows_an_upload_and_nothing_else(key: str) -> None:
    policy = json.loads(made(kms_key=key)[".iam-upload.json"])
    allowed = UPLOAD | (KEY if key else set())
    assert too_broad(policy, allowed) == []
    granted = {a for one in policy["Statement"] for a in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])}
    assert granted == allowed
    resources_of = {one["Resource"] for one in policy["Statement"]} - {"*"}
    assert resources_of == {"arn:aws:ec2:us-east-1::snapshot/*"} | ({key} if key else set())


@pytest.mark.parametrize(
    ("field", "value"), [("Action", "ebs:*"), ("Resource", "*"), ("Effect", "Deny"), ("Action", "iam:PassRole")]
)
def test_a_broader_policy_is_noticed(field: str, value: str) -> None:
    policy = aws.upload_policy(ref())
    policy["Statement"][1][field] = value
    assert too_broad(policy, UPLOAD)


# --- Azure ---------------------------------------------------------------------------------------------------------------

EXPRESSION = re.compile(r"parameters\('(\w+)'\)")


def arm_faults(template: dict[str, Any]) -> list[str]:
    """What a deployment would refuse first. Source: ARM's template syntax, and the reference of galleries/images/versions."""
    found = [] if "deploymentTemplate.json" in template["$schema"] else ["$schema"]
    used = set(EXPRESSION.findall(json.dumps(template["resources"])))
    found += [f"parameter {name} is not declared" for name in sorted(used - set(template["parameters"]))]
    found += [f"parameter {name} is not used" for name in sorted(set(template["parameters"]) - used)]
    for one in template["resources"]:
        segments = one["type"].count("/")  # Microsoft.Compute/galleries: one name; /images: two; /versions: three
        if segments > 1 and one["name"].count("parameters(") != segments:
            found.append(f"{one['type']}: name {one['name']} has not {segments} segments")
        found += [f"{one['type']}: no {field}" for field in ("apiVersion", "location", "properties") if field not in one]
    version = template["resources"][-1]["properties"]["storageProfile"]
    luns = [disk["lun"] for disk in version["dataDiskImages"]]
    return found + ([] if version["osDiskImage"]["source"]["id"] and luns == [0] else ["storageProfile"])


def test_the_gallery_template_holds_together() -> None:
    template = json.loads(made("azure-data")[".gallery.json"])
    assert arm_faults(template) == []
    assert "defaultValue" not in template["parameters"]["dataDisk"]
    known = json.loads(made("azure-data", snapshot_id=IDS["azure-data"])[".gallery.json"])
    assert known["parameters"]["dataDisk"]["defaultValue"] == IDS["azure-data"]
    assert "AKS takes neither a custom node image" in template["metadata"]["description"]


def test_a_broken_gallery_template_is_noticed() -> None:
    template = json.loads(made("azure-data")[".gallery.json"])
    del template["parameters"]["version"]
    template["resources"][1]["name"] = "[parameters('image')]"
    assert len(arm_faults(template)) == 2
