"""The Packer templates: whole for HCL's grammar, without newer arguments for Packer 1.6, and built against an EC2 API."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import hcl2
import pytest

from builder import process, resources
from builder.config.spec import Bake, Volume
from builder.node.specs import packer
from tests.bounds import BOUND_S
from tests.conftest import missing
from tests.servers import ec2
from tests.specs import made

FOLDER = resources.folder("packer")
# template: the target whose variables it takes, and what a user says besides
TEMPLATES: dict[str, tuple[str, dict[str, str]]] = {
    "aws/data-volume": ("bottlerocket", {}),
    "aws/al2023-ami": ("al2023-volume", {}),
    "aws/bake-volume": ("", {"name": "llama", "region": "us-east-1", "oci_archive": "/dev/null",
                             "reference": "registry.example.com/llm/llama:v1"}),
    "gcp/secondary-disk": ("gke-secondary", {"project": "some-project"}),
    "azure/data-disk": ("azure-data", {"resource_group": "llm", "location": "westeurope"}),
}  # fmt: skip


def parsed(name: str) -> dict[str, Any]:
    with (FOLDER / f"{name}.pkr.hcl").open() as text:
        found: dict[str, Any] = hcl2.load(text)
    return found


def variables(name: str) -> dict[str, Any]:
    target, more = TEMPLATES[name]
    return (json.loads(made(target)[".auto.pkrvars.json"]) if target else {}) | more


def laid_out(name: str, folder: Path, text: str) -> tuple[Path, Path]:
    """The template with `text` and its scripts as they lie in packer/, and its variables, the disk's files beside them."""
    for script in FOLDER.glob("*.sh"):
        shutil.copy(script, folder)
    template = folder / f"{name}.pkr.hcl"
    template.parent.mkdir(exist_ok=True)
    template.write_text(text)
    values = variables(name)
    if "disk_file" in values:
        values["disk_file"] = str(folder / "data.img")
        (folder / "data.img.setup.sh").write_text(made("raw")[".setup.sh"])
    path = folder / "values.pkrvars.json"
    path.write_text(json.dumps(values))
    return template, path


@pytest.fixture
def packer_1_6() -> None:
    if process.which("packer") is None:
        missing("packer", "packer is not installed (scripts/system)")


def test_the_table_knows_every_template() -> None:
    assert {str(p.relative_to(FOLDER)).removesuffix(".pkr.hcl") for p in FOLDER.rglob("*.pkr.hcl")} == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_variable_without_a_default_gets_a_value(name: str) -> None:
    declared = {key.strip('"'): body for block in parsed(name)["variable"] for key, body in block.items()}
    given = variables(name)
    assert set(given) <= set(declared)
    assert {key for key, body in declared.items() if "default" not in body} <= set(given)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_whole_template_names_its_plugin_and_one_source(name: str) -> None:
    whole = parsed(name)
    assert whole["packer"][0]["required_plugins"]
    (source,) = whole["source"]
    (kind,) = source
    (label,) = source[kind]
    clean = f"source.{kind}.{label}".replace('"', "")
    assert [s.strip('"') for s in whole["build"][0]["sources"]] == [clean]


@pytest.mark.parametrize("name", ["aws/data-volume", "aws/bake-volume"])
def test_the_data_volume_alone_becomes_a_snapshot(name: str) -> None:
    (source,) = parsed(name)["source"]
    (volumes,) = [body["ebs_volumes"] for kind in source.values() for body in kind.values()]
    assert [v.get("snapshot_volume", False) for v in volumes] == [False, True]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_large_is_sent_to_the_instance_s_disk_and_found_there(name: str) -> None:
    """Amazon Linux 2023 has /tmp in memory, half of it at most (its user guide, "/tmp"); c6i.large has 4 GiB."""
    text = (FOLDER / f"{name}.pkr.hcl").read_text()
    (sent,) = re.findall(r'destination = "(/.+)"', text)
    (script,) = re.findall(r"run-bake\.sh", text) or re.findall(r"write-disk\.sh", text)
    assert sent.startswith("/var/tmp/")
    assert sent in (FOLDER / script).read_text()


def test_the_written_disk_is_the_one_captured_on_google_cloud() -> None:
    (source,) = parsed("gcp/secondary-disk")["source"]
    ((disk,),) = [body["disk_attachment"] for kind in source.values() for body in kind.values()]
    assert disk["create_image"] is True
    name = disk["device_name"].strip('"')
    assert f"DEVICE=/dev/disk/by-id/google-{name}" in (FOLDER / "gcp/secondary-disk.pkr.hcl").read_text()


@pytest.mark.usefixtures("packer_1_6")
@pytest.mark.parametrize("name", TEMPLATES)
def test_packer_validates_the_part_that_it_knows(name: str, tmp_path: Path) -> None:
    template, values = laid_out(name, tmp_path, packer.packer_1_6((FOLDER / f"{name}.pkr.hcl").read_text()))
    process.run(["packer", "validate", "-var-file", values, template], timeout_s=BOUND_S)
    process.run(["packer", "fmt", "-check", FOLDER / f"{name}.pkr.hcl"], timeout_s=BOUND_S)


@pytest.mark.usefixtures("packer_1_6")
@pytest.mark.parametrize("name", TEMPLATES)
def test_packer_refuses_a_broken_template(name: str, tmp_path: Path) -> None:
    text = packer.packer_1_6((FOLDER / f"{name}.pkr.hcl").read_text())
    broken = re.sub(r"(?m)^(source .*\{)$", r"\1\n  no_such_argument = 1", text)
    template, values = laid_out(name, tmp_path, broken)
    done = process.run(["packer", "validate", "-var-file", values, template], check=False, timeout_s=BOUND_S)
    assert done.returncode
    template, values = laid_out(name, tmp_path, text)
    values.write_text(values.read_text().replace('"name"', '"nmae"'))
    assert process.run(["packer", "validate", "-var-file", values, template], check=False, timeout_s=BOUND_S).returncode


def test_only_the_marked_lines_are_left_out() -> None:
    text = "a\n# packer >= 1.8\nb\n# end\nc\n  # packer >= 1.8\n d\n  # end\ne\n# on the instance\nf\n# end\n"
    assert packer.packer_1_6(text) == "a\nc\ne\n# on the instance\nf\n# end\n"
    assert packer.without_instance(packer.packer_1_6(text)) == "a\nc\ne\n"


@pytest.mark.parametrize("size", [2, 120])
def test_the_instance_has_room_for_archive_and_disk(size: int) -> None:
    given = json.loads(made(nonzero=3 << 30, size=size << 30)[".auto.pkrvars.json"])
    assert (given["volume_size"], given["builder_size"]) == (size, 22)


def test_iops_obey_the_size_of_the_volume() -> None:
    given = json.loads(made(bake=Bake(volume=Volume(iops=16_000)), size=8 << 30)[".auto.pkrvars.json"])
    assert given["iops"] == 4000


# --- builds ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ec2.running() as found:
        yield found


def emulated(text: str, url: str) -> str:
    """The template for an EC2 that starts no machine: no login, and volumes that outlive the instance so that we see them."""
    lines = (
        '  access_key = "x"\n  secret_key = "y"\n  communicator = "none"\n  skip_credential_validation = true\n'
        f'  skip_metadata_api_check = true\n  custom_endpoint_ec2 = "{url}"\n'
    )
    text = packer.without_instance(packer.packer_1_6(text))
    text = re.sub(r"delete_on_termination( *)= true", r"delete_on_termination\1= false", text)
    return re.sub(r"(?m)^(source .*\{)\n", lambda found: f"{found[1]}\n{lines}", text)


@pytest.mark.usefixtures("packer_1_6")
@pytest.mark.parametrize("name", ["aws/data-volume", "aws/bake-volume", "aws/al2023-ami"])
def test_packer_builds_against_an_ec2_api(name: str, url: str, tmp_path: Path) -> None:
    client = boto3.client("ec2", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y")
    before = {v["VolumeId"] for v in client.describe_volumes()["Volumes"]}
    template, values = laid_out(name, tmp_path, emulated((FOLDER / f"{name}.pkr.hcl").read_text(), url))
    process.run(["packer", "build", "-color=false", "-var-file", values, template], timeout_s=BOUND_S)
    volumes = [v for v in client.describe_volumes()["Volumes"] if v["VolumeId"] not in before]
    (data,) = [v for v in volumes if v["Size"] == 120]
    assert data["VolumeType"] == "gp3"  # moto forgets the rest of what RunInstances says
    if name == "aws/al2023-ami":
        (image,) = [i for i in client.describe_images(Owners=["self"])["Images"] if i["Name"] == "llama-c0c0c0c0c0c0-1.34"]
        assert {"Key": "builder:content-sha256", "Value": "c0" * 32} in image["Tags"]
    else:
        assert {"Key": "Name", "Value": "llama"} in data["Tags"]
    assert {i["State"]["Name"] for r in client.describe_instances()["Reservations"] for i in r["Instances"]} == {"terminated"}
