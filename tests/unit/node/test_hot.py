"""Hot blocks: the parts that compute, and the texts."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import subprocess
import tomllib
from pathlib import Path

import pytest

from builder.cli.group import run as cli
from builder.errors import CapabilityError, ConfigError, IntegrityError
from builder.node import layout, specs
from builder.node.blocks import BLOCK
from builder.node.hot import extents, hotlist, reader, start, touched, trace
from builder.node.hot.hotlist import HotFile, HotList
from tests.specs import ref, volume

HOT = HotList("ab" * 32, 1 << 30, 1 << 20, 40, "bottlerocket", ("registry.example.com/llm/tiny:v1",), hotlist.TRACED,
              (2, 900, 901, 7), (HotFile("var/a", ((0, 4096),)),))  # fmt: skip
RAW = dataclasses.replace(HOT, target="raw", offset=0)


def blocks_of(script: str) -> list[int]:
    """What the script would read, expanded."""
    text = script.split("blocks='", 1)[1].split("'", 1)[0]
    pairs = [piece.partition("+") for piece in text.split()]
    return [int(first) + at for first, _, count in pairs for at in range(int(count or 1))]


def test_a_list_comes_back_equal(tmp_path: Path) -> None:
    HOT.write(tmp_path / "hot.json")
    assert hotlist.read(tmp_path / "hot.json") == HOT
    assert json.loads((tmp_path / "hot.json").read_text())["share"] == 0.1
    assert HOT.bytes == 4 * BLOCK


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("900", "905"), "damaged: checksum is"),
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: "[]", "format None, expected 1"),
        (lambda text: text.replace('"format":1', '"format":2'), "format 2, expected 1"),
    ],
)
def test_a_damaged_list_is_refused(tmp_path: Path, change: object, says: str) -> None:
    path = tmp_path / "hot.json"
    HOT.write(path)
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(IntegrityError, match=says):
        hotlist.read(path)


@pytest.mark.parametrize("blocks", [(2, 2), (2, -1), (2, 2048)])
def test_a_sound_checksum_does_not_excuse_blocks_that_cannot_be(tmp_path: Path, blocks: tuple[int, ...]) -> None:
    dataclasses.replace(HOT, blocks=blocks).write(tmp_path / "hot.json")
    with pytest.raises(IntegrityError, match="not a list of hot blocks"):
        hotlist.read(tmp_path / "hot.json")


def test_a_start_is_traced_on_the_processor_that_the_image_is_for() -> None:
    here, other = layout.host_platform(), "linux/riscv64"
    images = [{"reference": f"registry.example.com/{name}:v1", "platform": p} for name, p in (("a", here), ("b", other))]
    plan = start.HotPlan(Path("d.img"), images=("registry.example.com/a:v1",))
    assert start._chosen({"images": images}, plan) == images[:1]
    with pytest.raises(CapabilityError, match=f"b:v1: for {other}, and this machine is {here}"):
        start._chosen({"images": images}, dataclasses.replace(plan, images=()))


def test_a_list_of_another_disk_is_refused(tmp_path: Path) -> None:
    assert HOT.of_disk("ab" * 32, tmp_path) is HOT
    with pytest.raises(IntegrityError, match=r"content is cd.*was taken from ab"):
        HOT.of_disk("cd" * 32, tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        hotlist.read(tmp_path / "none.json")


def test_reads_become_blocks_once_each_in_order_and_zeros_are_left_out() -> None:
    reads = [(3 * BLOCK + 5, 10), (0, 2 * BLOCK + 1), (3 * BLOCK, BLOCK), (9 * BLOCK, 1)]
    assert hotlist.in_order(reads, 2 * BLOCK, frozenset({2, 4, 5})) == (5, 2, 4)


def test_only_reads_of_a_trace_count() -> None:
    lines = [
        "# comment",
        "  mount-1 [001] ..... 58848.8: block_bio_queue: 7,0 RA 2092928 + 8 [mount]",
        "  umount-1 [001] ..... 58848.9: block_bio_queue: 7,0 WSM 1046888 + 4096 [umount]",
        "  fstrim-1 [001] ..... 58848.9: block_bio_queue: 7,0 DS 8 + 4096 [fstrim]",
        "  sync-1 [001] ..... 58848.9: block_bio_queue: 7,0 FWS 0 + 0 [a R 1 + 1]",
        "  cat-1 [000] ..... 58848.9: block_bio_queue: 7,0 RSM 1 + 1 [odd name]",
    ]
    assert [(r.start, r.size, r.flags) for r in trace.parse("\n".join(lines))] == [
        (2092928 * 512, 4096, "RA"),
        (512, 512, "RSM"),
    ]


def test_a_sparse_file_has_extents_where_it_has_data(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        out.write(b"a" * 8192)
        out.seek(1 << 20)
        out.write(b"b" * 4096)
        out.flush()
        subprocess.run(["sync", path], check=True)
    with path.open("rb") as file:
        try:
            found = extents.extents(file.fileno(), path.stat().st_size)
        except OSError:
            pytest.skip("this file system has no FIEMAP")
        covered = {at for one in found for at in range(one.offset, one.offset + one.size, 4096)}
        assert covered == {0, 4096, 1 << 20}
        assert extents.resident(file.fileno(), path.stat().st_size)[0][0] == 0


def test_a_file_is_hot_only_where_a_read_overlaps_it() -> None:
    order = touched.first_reads([(0, 4096), (40 << 10, 8 << 10), (44 << 10, 8 << 10)])
    parts = [extents.Extent(0, 36 << 10, 8 << 10), extents.Extent(8 << 10, 48 << 10, 4 << 10)]
    assert touched.hits(parts, 10_000, order) == (1, ((4096, 5904),))
    assert touched.hits([extents.Extent(0, 1 << 20, 4096)], 4096, order)[1] == ()
    assert touched.hits([extents.Extent(0, 36 << 10, 16 << 10)], 4096, order)[1] == ()  # preallocated beyond its end


def test_the_reader_counts_from_where_the_node_finds_the_file_system() -> None:
    assert blocks_of(reader.reader(HOT, "d.img").script) == [0, 898, 899, 5]
    assert blocks_of(reader.reader(RAW, "d.img").script) == [2, 900, 901, 7]
    assert "/.bottlerocket/rootfs/dev/disk/by-partlabel/BOTTLEROCKET-DATA" in reader.reader(HOT, "d.img").script
    assert "/dev/disk/by-label/BUILDER-DATA" in reader.reader(RAW, "d.img").script


@pytest.mark.parametrize("limit", [100_000, 2000, 1000, 300, 40])
def test_a_list_that_is_too_long_reads_more_and_never_less(limit: int) -> None:
    chosen = random.Random(1).sample(range(4000), 700)
    hot = dataclasses.replace(RAW, size=4000 * BLOCK, blocks=tuple(chosen))
    made = reader.reader(hot, "d.img", list_bytes=limit)
    found = blocks_of(made.script)
    assert set(found) >= set(chosen)
    assert (len(found), len(found) - 700) == (made.count, made.extra)
    assert len(made.script.split("blocks='", 1)[1].split("'", 1)[0]) <= limit
    if limit == 100_000:
        assert found == chosen
        assert made.ordered
    else:
        assert not made.ordered


def test_an_empty_list_reads_nothing() -> None:
    assert blocks_of(reader.reader(dataclasses.replace(HOT, blocks=()), "d.img").script) == []


def test_bottlerocket_runs_it_before_kubelet_and_never_needs_it() -> None:
    settings = tomllib.loads(reader.bootstrap_container(HOT, "d.img", image="registry.example.com/tools/sh:1"))
    one = settings["settings"]["bootstrap-containers"]["builder-hot"]
    assert (one["source"], one["mode"], one["essential"]) == ("registry.example.com/tools/sh:1", "once", False)
    assert base64.b64decode(one["user-data"]).decode() == reader.reader(HOT, "d.img").script


def test_the_longest_list_leaves_room_in_user_data() -> None:
    chosen = random.Random(1).sample(range(240_000), 60_000)
    hot = dataclasses.replace(HOT, size=240_002 * BLOCK, blocks=tuple(index + 2 for index in chosen))
    assert len(reader.bootstrap_container(hot, "d.img").encode()) < reader.USER_DATA_BYTES - 2048
    with pytest.raises(ConfigError, match="user data of 16385 bytes, EC2 takes 16384"):
        reader.need_room("x" * 16385)


def test_a_disk_name_cannot_leave_its_comment() -> None:
    script = reader.reader(HOT, "a\nreboot").script
    assert not [line for line in script.splitlines() if line.startswith("reboot")]


def test_a_unit_with_the_longest_list_fits_into_user_data_too() -> None:
    chosen = random.Random(2).sample(range(240_000), 60_000)
    text = reader.starter(dataclasses.replace(RAW, size=240_000 * BLOCK, blocks=tuple(chosen)), "d.img")
    assert len(text.encode()) < reader.USER_DATA_BYTES - 4096  # what al2023's other parts take


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "builder-hot.service"
    path.write_text(reader.files(RAW, "d.img")[".hot.service"])
    try:
        done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs systemd-analyze")
    assert done.stderr == ""
    assert done.returncode == 0
    escaped = subprocess.check_output(["systemd-escape", "-p", "--suffix=device", "/dev/disk/by-label/BUILDER-DATA"], text=True)
    assert f"Requires={escaped}" in path.read_text()


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_script_says_what_is_wrong(tmp_path: Path, shell: str) -> None:
    script = tmp_path / "hot.sh"
    script.write_text(reader.reader(HOT, "d.img").script)
    done = subprocess.run([shell, script, tmp_path / "no-such"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"hot blocks: no such device: {tmp_path}/no-such\n"


@pytest.mark.parametrize(("name", "suffix"), [("bottlerocket", ".user-data.toml"), ("al2023-volume", ".user-data.txt")])
def test_specs_take_a_list_of_their_disk_and_no_other(
    name: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "data.img.json"
    record.write_text(specs.record(ref(name), volume(target=name)))
    hot = dataclasses.replace(HOT, target=name, disk_sha256=ref(name).sha256)
    hot.write(tmp_path / "hot.json")
    dataclasses.replace(hot, disk_sha256="cd" * 32).write(tmp_path / "other.json")
    words = ["bake", "specs", str(record), "--reader-image", "registry.example.com/sh:1", "--hot"]
    with pytest.raises(SystemExit) as refused:
        cli([*words, str(tmp_path / "other.json")])
    assert refused.value.code == 3
    assert "was taken from cdcd" in capsys.readouterr().err
    assert not (tmp_path / f"data.img{suffix}").exists()
    with pytest.raises(SystemExit) as done:
        cli([*words, str(tmp_path / "hot.json")])
    assert done.value.code == 0
    text = (tmp_path / f"data.img{suffix}").read_text()
    if name == "bottlerocket":
        one = tomllib.loads(text)["settings"]["bootstrap-containers"]["builder-hot"]
        assert one["source"] == "registry.example.com/sh:1"
        assert blocks_of(base64.b64decode(one["user-data"]).decode()) == [0, 898, 899, 5]
        assert one["user-data"] in (tmp_path / "data.img.ec2nodeclass.yaml").read_text()
    else:
        assert 'Environment="BLOCKS=0 898 899 5"' in text
        assert "systemctl start --no-block builder-hot.service" in text
