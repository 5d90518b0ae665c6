"""Generated files: byte for byte, valid for the programs that read them, and consistent with each other."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

from builder import process, resources
from builder.config.spec import Bake, Hydrate, Volume
from builder.errors import ConfigError
from builder.node import hydrate, specs
from builder.node.bake import DataVolume
from builder.node.lint import lint
from tests.bounds import BOUND_S
from tests.conftest import missing

GIB = 1 << 30
DIGEST = "sha256:" + "ab" * 32
PACKER = resources.folder("packer") / "aws"


def volume(path: Path = Path("/srv/data.img"), *, size: int = 120 * GIB, nonzero: int = 12 * GIB) -> DataVolume:
    image = {"reference": "registry.example.com/llm/llama:v1", "digest": DIGEST}
    return DataVolume(path, size, nonzero, nonzero >> 19, "c0" * 32, (image,), {}, "xfs", "1.7.24", nonzero / size)


def made(bake: Bake | None = None, **more: Any) -> dict[str, str]:
    return specs.node_specs(volume(), bake or Bake(), name="llama", **more).files


def node_class(files: dict[str, str]) -> dict[str, Any]:
    found = yaml.safe_load(files[".ec2nodeclass.yaml"])
    assert isinstance(found, dict)
    return found


def test_the_files_are_as_reviewed(golden: Callable[[str, str], None]) -> None:
    for suffix, text in made().items():
        golden(f"node/data.img{suffix}", text)


def test_with_literal_values_nothing_is_left_to_fill_in() -> None:
    text = made(snapshot_id="snap-0123456789abcdef0", cluster="prod")[".ec2nodeclass.yaml"]
    assert "${" not in text
    assert "envsubst" not in text
    assert yaml.safe_load(text)["spec"]["role"] == "KarpenterNodeRole-prod"


def test_a_snapshot_id_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="'vol-1' is not a snapshot id"):
        made(snapshot_id="vol-1")


@pytest.mark.parametrize("mode", ["none", "rate", "fsr"])
def test_the_manifest_obeys_the_rules_of_the_crd(mode: Any) -> None:
    """Rules of Karpenter's EC2NodeClass v1 CRD, restated: they are CEL, which only an API server evaluates."""
    found = node_class(made(Bake(hydrate=Hydrate(mode=mode))))
    assert (found["apiVersion"], found["kind"]) == ("karpenter.k8s.aws/v1", "EC2NodeClass")
    spec = found["spec"]
    system, data = (m["ebs"] for m in spec["blockDeviceMappings"])
    assert [m["deviceName"] for m in spec["blockDeviceMappings"]] == ["/dev/xvda", "/dev/xvdb"]
    assert "encrypted" not in data  # excluded with snapshotID
    assert ("volumeInitializationRate" in data) == (mode == "rate")
    assert "volumeInitializationRate" not in system  # needs snapshotID
    assert 100 <= data.get("volumeInitializationRate", 100) <= 300
    assert "instanceStorePolicy" not in spec  # RAID0 would hide the cache
    assert re.fullmatch(r"bottlerocket@v\d+\.\d+\.\d+", spec["amiSelectorTerms"][0]["alias"])
    assert spec["userData"] == made()[".user-data.toml"]


def test_our_own_lint_finds_nothing(tmp_path: Path) -> None:
    paths = specs.node_specs(volume(tmp_path / "d.img"), Bake(), name="llama").write(tmp_path / "d.img")
    assert lint([p for p in paths if p.suffix in (".yaml", ".toml")], disk_bytes=120 * GIB) == []


@pytest.mark.parametrize(("gib", "asked", "given"), [(2, 6000, 3000), (8, 6000, 4000), (120, 6000, 6000), (120, 200, 3000)])
def test_gp3_gets_as_many_operations_as_its_size_allows(gib: int, asked: int, given: int) -> None:
    assert specs.iops(gib * GIB, Bake(volume=Volume(iops=asked))) == given


def test_io2_has_no_throughput() -> None:
    data = node_class(made(Bake(volume=Volume(type="io2"))))["spec"]["blockDeviceMappings"][1]["ebs"]
    assert (data["volumeType"], data["iops"], "throughput" in data) == ("io2", 6000, False)


@pytest.mark.parametrize(("used", "low", "high"), [(0.0, 80, 85), (0.7, 80, 85), (0.8, 85, 90), (0.93, 94, 99), (1.0, 94, 99)])
def test_thresholds_lie_above_what_is_full_from_the_start(used: float, low: int, high: int) -> None:
    found = tomllib.loads(specs.user_data("d.img", used))["settings"]["kubernetes"]
    assert found == {"image-gc-low-threshold-percent": str(low), "image-gc-high-threshold-percent": str(high)}


def test_packer_gets_a_value_for_each_variable_without_a_default() -> None:
    declared = {name.strip('"'): body for block in _template()["variable"] for name, body in block.items()}
    given = json.loads(made()[".auto.pkrvars.json"])
    assert set(given) <= set(declared)
    assert {name for name, body in declared.items() if "default" not in body} <= set(given)


def test_the_template_snapshots_the_data_volume_alone() -> None:
    (source,) = (b for block in _template()["source"] for kinds in block.values() for b in [kinds] if isinstance(kinds, dict))
    volumes = next(iter(source.values()))["ebs_volumes"]
    assert [v.get("snapshot_volume", False) for v in volumes] == [False, True]
    assert _template()["packer"][0]["required_plugins"]


def test_the_part_that_packer_1_6_knows_validates(tmp_path: Path) -> None:
    if process.which("packer") is None:
        missing("packer", "packer is not installed (scripts/system)")
    template = tmp_path / "data-volume.pkr.hcl"
    template.write_text(specs.packer_1_6((PACKER / template.name).read_text()))
    (tmp_path / "write-disk.sh").write_bytes((PACKER / "write-disk.sh").read_bytes())
    values = tmp_path / "data.img.auto.pkrvars.json"
    values.write_text(made()[".auto.pkrvars.json"])
    process.run(["packer", "validate", "-var-file", values, template], timeout_s=BOUND_S)
    values.write_text(made()[".auto.pkrvars.json"].replace('"region"', '"regoin"'))
    assert process.run(["packer", "validate", "-var-file", values, template], check=False, timeout_s=BOUND_S).returncode


def test_only_the_marked_lines_are_left_out() -> None:
    assert specs.packer_1_6("a\n# packer >= 1.8\nb\n# end\nc\n  # packer >= 1.8\n d\n  # end\ne\n") == "a\nc\ne\n"


def test_the_arithmetic_of_hydration() -> None:
    """The figures of docs/bake.md: a 12 GiB image, and one with the weights of a 70B model."""
    small = hydrate.plan(12 * GIB, 120 * GIB, mode="rate")
    assert (round(small.seconds), round(small.node_usd, 3), round(small.upload_usd, 2)) == (41, 0.043, 0.15)
    large = hydrate.plan(155 * GIB, 500 * GIB, mode="rate")
    assert (round(large.seconds), round(large.node_usd, 2), round(large.upload_usd, 2)) == (529, 0.56, 1.90)
    assert "from the store" in large.advice
    assert round(hydrate.plan(12 * GIB, 120 * GIB, mode="rate", mib_per_s=100).seconds) == 123
    assert hydrate.plan(12 * GIB, 120 * GIB, mode="fsr").credits == 8
    assert [hydrate.plan(GIB, gib * GIB, mode="fsr").credits for gib in (20, 1024, 4096)] == [10, 1, 1]
    assert hydrate.plan(GIB, 20 * GIB, mode="none").seconds == pytest.approx(204.8)


def _template() -> dict[str, Any]:
    with (PACKER / "data-volume.pkr.hcl").open() as text:
        found: dict[str, Any] = hcl2.load(text)
    return found
