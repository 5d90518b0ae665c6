"""`builder bake specs`: from a record to files, in words and in JSON."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
import yaml

from builder.cli.group import run as builder
from builder.node import specs
from builder.node.hot import hotlist
from tests.specs import DIGEST, IDS, TARGETS, ref, volume


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        builder(["bake", "specs", *map(str, arguments)])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def recorded(folder: Path, target: str = "bottlerocket") -> Path:
    path = folder / "data.img.json"
    path.write_text(specs.record(ref(target), volume(target=target)))
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_the_files_lie_beside_the_record(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = recorded(tmp_path, target)
    before = record.read_bytes()
    code, out, err = run(capsys, record, "--snapshot-id", IDS[target], "--cluster", "prod", "--format", "json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["snapshot"]["id"] == IDS[target]
    assert told["snapshot"]["images"] == [{"reference": "registry.example.com/llm/llama:v1", "digest": DIGEST}]
    found = {str(path) for path in tmp_path.rglob("*") if path.is_file()} - {str(record)}
    assert set(told["files"]) == found
    assert {name.removeprefix(f"{tmp_path}/data.img") for name in found} == set(specs.render(ref(target)))
    assert record.read_bytes() == before
    assert all(Path(name).stat().st_mode & 0o111 for name in found if name.endswith(".sh"))


def test_what_is_said_goes_into_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "cluster"
    to.mkdir()
    said = "--cluster prod --name gpu --region eu-west-1 --volume-type io2 --iops 9000 --hydrate rate --rate 100"
    code, out, _ = run(
        capsys, recorded(tmp_path), "--to", to, "--snapshot-id", IDS["bottlerocket"], *said.split(), "--os-version", "v1.63.0"
    )
    assert code == 0
    assert f"wrote {to}/data.img.ec2nodeclass.yaml" in out
    node = yaml.safe_load((to / "data.img.ec2nodeclass.yaml").read_text())
    data = node["spec"]["blockDeviceMappings"][1]["ebs"]
    assert (node["metadata"]["name"], node["spec"]["amiSelectorTerms"][0]["alias"]) == ("gpu", "bottlerocket@v1.63.0")
    assert (data["volumeType"], data["iops"], data["volumeInitializationRate"]) == ("io2", 9000, 100)
    assert "eu-west-1::snapshot" in (to / "data.img.iam-upload.json").read_text()
    assert json.loads((to / "data.img.auto.pkrvars.json").read_text())["disk_file"] == str(tmp_path / "data.img")
    assert not (to / "data.img.json").exists()


def test_a_hot_list_of_this_disk_goes_in_and_another_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, path = recorded(tmp_path), tmp_path / "data.img.hot.json"
    found = hotlist.HotList("c0" * 32, 120 << 30, 1 << 20, 24576, "bottlerocket", (), hotlist.TRACED, (7, 3))
    found.write(path)
    assert run(capsys, record, "--hot", path, "--reader-image", "registry.example.com/reader:v1")[0] == 0
    settings = tomllib.loads((tmp_path / "data.img.user-data.toml").read_text())["settings"]
    assert settings["bootstrap-containers"]["builder-hot"]["source"] == "registry.example.com/reader:v1"
    dataclasses.replace(found, disk_sha256="ab" * 32).write(path)
    code, _, err = run(capsys, record, "--hot", path)
    assert code == 3
    assert "the list of hot blocks was taken from abab" in err
    path.write_text("{}")
    assert run(capsys, record, "--hot", path)[0] in (2, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--snapshot-id", "ami-1"], "'ami-1' is not a snapshot id; a disk for bottlerocket has snap- and 17"),
        (["--snapshot-id", IDS["gke-secondary"]], "is an id of Google Cloud; a disk for bottlerocket has snap-"),
        (["--rate", "99"], "mib_per_s: Input should be greater than or equal to 100; found 99"),
        (["--throughput", "1900"], "gp3 with 1900 MiB/s and 6000 operations per second; expected 4"),
        (["--to", "nowhere/at/all"], "nowhere/at/all: no such folder"),
        (["--os-version", "v20260714"], "os_version v20260714 is a release of AL2023"),
        (["--kms-key", "mine"], "'mine' is not the ARN of a KMS key"),
        (["--name", "Not A Name"], "name: 'Not A Name' is not a name; expected lower case"),
        (["--cluster", "a b"], "cluster: 'a b' is not a name; expected letters"),
    ],
)
def test_bad_input_is_one_error_and_no_file(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = recorded(tmp_path)
    code, out, err = run(capsys, record, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [record]
