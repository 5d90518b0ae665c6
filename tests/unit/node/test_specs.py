"""SnapshotRef and the files rendered from it: byte for byte, from a record as from a bake, and what is refused."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from builder.config.recorded import settings_of
from builder.config.spec import Bake, Hydrate, Volume
from builder.errors import ConfigError
from builder.node import hydrate, specs
from builder.node.bake import DataVolume
from builder.node.hot import hotlist, reader
from builder.node.lint import lint
from builder.node.specs import karpenter, user_data
from builder.node.specs import ref as refs
from tests.specs import DIGEST, GIB, IDS, TARGETS, hot_texts, made, ref, volume

RECORD = '{"kind": "builder.disk/1", "name": "a", "target": "raw", "settings": {}, "volume": '


@pytest.mark.parametrize("target", TARGETS)
def test_the_files_are_as_reviewed(target: str, golden: Callable[[str, str], None]) -> None:
    one = ref(target)
    for suffix, text in ({".json": specs.record(one, volume(target=target))} | specs.render(one)).items():
        golden(f"node/{target}/data.img{suffix}", text)


@pytest.mark.parametrize("target", TARGETS)
def test_a_record_renders_what_the_bake_rendered(target: str, tmp_path: Path) -> None:
    bake = Bake(volume=Volume(type="io2", iops=9000), hydrate=Hydrate(mode="fsr"), region="eu-west-1")
    one = ref(target, bake, path=tmp_path / "d.img")
    (tmp_path / "d.img.json").write_text(specs.record(one, volume(tmp_path / "d.img", target=target)))
    found = specs.read_record(tmp_path / "d.img.json")
    again = specs.snapshot_ref(found.volume, settings_of(found.settings), name=found.name)
    assert again == one
    assert specs.render(again) == specs.render(one)


def test_what_goes_with_a_replaced_disk_is_what_names_its_content_and_sends_it() -> None:
    files = {suffix: text for target in TARGETS for suffix, text in made(target).items()}
    sending = {suffix for suffix in files if suffix.endswith((".gke.sh", ".azure.sh", ".pkrvars.json"))}
    assert set(specs.BOUND) == {".json", *sending}
    assert all("c0" * 6 in files[suffix] for suffix in sending)


def test_a_fresh_bake_and_the_map_agree(tmp_path: Path) -> None:
    image = {"reference": "registry.example.com/llm/llama:v1", "digest": DIGEST, "platform": "linux/amd64"}
    baked = DataVolume(Path("/srv/data.img"), 120 * GIB, 12 * GIB, 24576, "c0" * 32, (image,), {}, "xfs", "1.7.24", 0.1)
    files = specs.node_specs(baked, Bake(), name="llama").files
    assert {suffix: text for suffix, text in files.items() if suffix != ".json"} == made()
    assert json.loads(files[".json"])["kind"] == "builder.disk/1"


@pytest.mark.parametrize("target", ["bottlerocket", "al2023-volume"])
def test_with_literal_values_nothing_is_left_to_fill_in(target: str) -> None:
    files = made(target, snapshot_id=IDS[target], cluster="prod")
    text = files[".ec2nodeclass.yaml"]
    assert "${SNAPSHOT_ID}" not in text
    assert "envsubst" not in text
    assert yaml.safe_load(text)["spec"]["role"] == "KarpenterNodeRole-prod"
    assert IDS[target] in files[".launch-template.json"]


@pytest.mark.parametrize("target", TARGETS)
def test_an_id_of_the_targets_own_cloud_is_taken(target: str) -> None:
    assert ref(target, snapshot_id=IDS[target]).id == IDS[target]
    assert ref(target, snapshot_id="${MY_ID}").id == "${MY_ID}"


@pytest.mark.parametrize("target", ["bottlerocket", "al2023-volume", "gke-secondary", "azure-data"])
@pytest.mark.parametrize("other", ["bottlerocket", "gke-secondary", "azure-data"])
def test_an_id_of_another_cloud_is_refused(target: str, other: str) -> None:
    if IDS[target] == IDS[other]:
        return
    with pytest.raises(ConfigError, match=r"is an id of (AWS|Google Cloud|Azure); a disk for"):
        ref(target, snapshot_id=IDS[other])


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("bottlerocket", "vol-0123456789abcdef0"),
        ("bottlerocket", "snap-0123456789ABCDEF0"),
        ("bottlerocket", "snap-0123456789abcdef"),
        ("bottlerocket", "snap-0123456789abcdef0\n"),
        ("al2023-volume", "${lower}"),
        ("gke-secondary", "projects/p/global/images/Upper"),
        ("gke-secondary", "projects/some-project/zones/z/disks/d"),
        ("azure-data", "/subscriptions/x/resourceGroups/g/providers/Microsoft.Compute/snapshots/s"),
        ("raw", "two words"),
        ("raw", ""),
    ],
)
def test_an_id_that_is_none_is_refused(target: str, text: str) -> None:
    with pytest.raises(ConfigError, match="is not a snapshot id") as caught:
        ref(target, snapshot_id=text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Volume(throughput=2000), r"gp3 with 2000 MiB/s and 6000 operations per second; expected 4"),
        (Volume(iops=100_000), "gp3 with 100000 operations per second; expected at most 80000"),
    ],
)
def test_a_speed_that_ec2_refuses_is_refused_here(settings: Volume, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ref(bake=Bake(volume=settings))
    assert ref("raw", Bake(volume=settings))  # no EBS volume, so no matter


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"iops": 1}, "iops: Input should be greater than or equal to 100; found 1"),
        ({"throughput": 5000}, "throughput: .*2000; found 5000"),
        ({"mib_per_s": 301}, "mib_per_s: .*300; found 301"),
        ({"type": "st1"}, "type: .*found 'st1'"),
        ({"os_version": "latest"}, "os_version: .*found 'latest'"),
    ],
)
def test_a_setting_out_of_range_is_one_clear_error(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(specs.record(ref(), volume()))
    with pytest.raises(ConfigError, match=said):
        settings_of(specs.read_record(tmp_path / "d.json").settings, **changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("\xff", "not JSON|kind"),
        ("[]", "kind 'list'; expected 'builder.disk/1'"),
        ("{}", "kind None; expected 'builder.disk/1'"),
        ('{"kind": "builder.disk/2"}', "kind 'builder.disk/2'"),
        ('{"kind": "builder.disk/1"}', "not a whole record: KeyError at 'name'"),
        (RECORD + '{"path": 3}}', "TypeError at volume.path"),
        (RECORD + "[]}", "TypeError"),
    ],
)  # fmt: skip
def test_another_file_is_no_record(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=said) as caught:
        specs.read_record(tmp_path / "d.json")
    assert caught.value.hint == "give the OUT.img.json that bake disk wrote"


def test_a_key_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="'alias/a' is not the ARN of a KMS key"):
        ref(kms_key="alias/a")


def test_two_architectures_are_refused() -> None:
    mixed = volume()
    mixed["images"] = [*mixed["images"], {**mixed["images"][0], "platform": "linux/arm64"}]
    with pytest.raises(ConfigError, match="platforms linux/amd64, linux/arm64; expected one"):
        specs.snapshot_ref(mixed, Bake(), name="llama")


def test_a_volume_says_its_own_target() -> None:
    assert specs.snapshot_ref(volume(target="raw"), Bake(), name="a").target == "raw"
    with pytest.raises(ConfigError, match="target 'windows'"):
        specs.snapshot_ref(volume(target="windows"), Bake(), name="a")


@pytest.mark.parametrize("target", ["bottlerocket", "al2023-volume"])
def test_our_own_lint_finds_nothing(target: str, tmp_path: Path) -> None:
    """Everything together, as it is applied: the gate is what takes away the taint of the pool."""
    one = ref(target, path=tmp_path / "d.img")
    specs.NodeSpecs(specs.render(one), one.hydration).write(tmp_path / "d.img")
    assert lint([tmp_path], disk_bytes=120 * GIB) == []
    (tmp_path / "d.img.gate.yaml").unlink()
    assert [finding.rule for finding in lint([tmp_path], disk_bytes=120 * GIB)] == ["startup-taint"]


@pytest.mark.parametrize(("gib", "asked", "given"), [(2, 6000, 3000), (8, 6000, 4000), (120, 6000, 6000), (120, 200, 3000)])
def test_gp3_gets_as_many_operations_as_its_size_allows(gib: int, asked: int, given: int) -> None:
    assert refs.iops(gib * GIB, Volume(iops=asked)) == given


def test_each_type_of_volume_has_its_own_fields() -> None:
    for kind, fields in {"gp3": {"iops", "throughput"}, "io2": {"iops"}, "gp2": set()}.items():
        data = karpenter.node_class(ref(bake=Bake(volume=Volume(type=kind))))["spec"]["blockDeviceMappings"][1]["ebs"]
        assert {"iops", "throughput"} & set(data) == fields


@pytest.mark.parametrize(("used", "low", "high"), [(0.0, 80, 85), (0.7, 80, 85), (0.8, 85, 90), (0.93, 94, 99), (1.0, 94, 99)])
def test_thresholds_lie_above_what_is_full_from_the_start(used: float, low: int, high: int) -> None:
    assert user_data.thresholds(used) == (high, low)
    found = tomllib.loads(user_data.bottlerocket_toml(ref(used=used)))["settings"]["kubernetes"]
    assert found == {"image-gc-low-threshold-percent": str(low), "image-gc-high-threshold-percent": str(high)}


def test_a_release_is_in_its_systems_own_style() -> None:
    assert karpenter.release(ref("al2023-volume", Bake(os_version="v20250101"))) == "v20250101"
    assert karpenter.release(ref("al2023-volume")) == karpenter.AL2023_RELEASE
    with pytest.raises(ConfigError, match="v20250101 is a release of AL2023"):
        karpenter.release(ref("bottlerocket", Bake(os_version="v20250101")))


def test_hot_blocks_have_a_place_on_every_node_but_gkes() -> None:
    files = made(hot=hot_texts("bottlerocket"))
    found = tomllib.loads(files[".user-data.toml"])["settings"]
    assert set(found) == {"kubernetes", "bootstrap-containers"}
    assert found["bootstrap-containers"]["builder-hot"]["source"] == "registry.example.com/reader:v1"
    assert tomllib.loads(yaml.safe_load(files[".ec2nodeclass.yaml"])["spec"]["userData"])["settings"] == found
    for target in ("al2023-volume", "azure-data", "raw"):
        files = made(target, hot=hot_texts(target))
        assert files[".units/builder-hot.service"] == hot_texts(target)[".hot.service"]
        assert "systemctl start --no-block builder-hot.service" in files[".setup.sh"]
        assert hot_texts(target)[".hot.service"].strip() in files[".setup.sh"]  # the unit carries its program
        assert "builder-hot" not in made(target)[".setup.sh"]
    with pytest.raises(ConfigError, match="hot blocks for gke-secondary"):
        made("gke-secondary", hot=hot_texts("raw"))


def test_the_longest_list_of_hot_blocks_fits_into_user_data() -> None:
    blocks = tuple(random.Random(7).sample(range(245_000), 1_150))
    for target in ("bottlerocket", "al2023-volume"):
        many = hotlist.HotList("c0" * 32, 120 * GIB, 0, 24576, target, (), hotlist.TRACED, blocks)
        files = made(target, hot=reader.files(many, "data.img"))
        text = files[".user-data.toml" if target == "bottlerocket" else ".user-data.txt"]
        assert 8 << 10 < len(text) <= 16 << 10
        with pytest.raises(ConfigError, match="EC2 takes 16384"):
            made(target, hot=reader.files(many, "data.img") | {".hot.toml": "#" * 17_000, ".hot.service": "#" * 17_000})


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
    assert str(hydrate.elsewhere(GIB)) == "1.00 GiB; outside AWS there is no rate to set"
