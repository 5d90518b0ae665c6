"""Hot blocks on real parts: the kernel's block layer traced, FIEMAP asked, the reader run on a loop device."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import lazy, node
from builder.cli.group import run as cli
from builder.errors import BuilderError, ConfigError, IntegrityError
from builder.node import blocks, disk, volume, workplace
from builder.node.bake import BakePlan, DataVolume, bake
from builder.node.blocks import BLOCK
from builder.node.hot import extents, reader, start, trace
from builder.node.hot.hotlist import RESIDENT, HotList
from builder.node.hot.start import HotPlan, hot
from builder.node.inputs import ImageInput
from builder.node.targets import TARGETS
from tests import oci
from tests.bounds import BOUND_S

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root")]
BIG = 6 << 20  # more than read-ahead carries from a neighbour
FILES = {f"opt/app/{name}.bin": random.Random(name).randbytes(BIG) for name in ("early", "unread", "late")}
RUN = ("/bin/sh", "-c", "cat /opt/app/early.bin /opt/app/late.bin > /dev/null")


@pytest.fixture(scope="module")
def baked(loop_root: None, tmp_path_factory: pytest.TempPathFactory) -> DataVolume:
    folder = tmp_path_factory.mktemp("hot")
    oci.write_layout(folder / "layout", layers=[oci._shell_layer(), oci.tar({"opt/app/data.txt": b"data", **FILES})])
    return bake(BakePlan(folder / "data.img", images=(ImageInput(folder / "layout"),), size=1 << 30))


@pytest.fixture(scope="module")
def found(baked: DataVolume) -> HotList:
    before = baked.path.stat()
    listed = hot(HotPlan(baked.path, run=RUN))
    after = baked.path.stat()
    assert (before.st_mtime_ns, before.st_blocks) == (after.st_mtime_ns, after.st_blocks)  # only a copy was written
    return listed


@pytest.fixture(autouse=True)
def _nothing_stays(loop_root: None, baked: DataVolume) -> Iterator[None]:
    yield
    loops = subprocess.check_output(["losetup", "-n", "-O", "BACK-FILE"], text=True)
    assert str(baked.path.parent) not in loops
    assert not list(baked.path.parent.glob("*.hot"))


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    with (
        workplace.workplace(path) as place,
        disk.attached(path, start.extent(path)) as device,
        disk.mounted(device, place.mount),
    ):
        yield place.mount


def blocks_of(path: Path, name: str) -> list[int]:
    """Blocks of the disk that hold the file `name`, in the order of its bytes."""
    offset = start.extent(path).offset
    with opened(path) as root:
        (file,) = root.rglob(name)
        with file.open("rb") as stream:
            parts = extents.extents(stream.fileno(), file.stat().st_size)
    return [
        at for one in parts for at in range((offset + one.start) // BLOCK, (offset + one.start + one.size - 1) // BLOCK + 1)
    ]


def test_what_the_container_read_is_in_the_list_and_nothing_else(baked: DataVolume, found: HotList) -> None:
    early, unread, late = (blocks_of(baked.path, f"{name}.bin") for name in ("early", "unread", "late"))
    assert set(early) | set(late) <= set(found.blocks)
    assert not set(unread[1:-1]) & set(found.blocks)  # the outer ones are shared with neighbours
    assert found.disk_sha256 == baked.sha256
    assert found.nonzero_blocks == baked.blocks
    assert 0.3 < found.share < 0.9
    assert 2 in found.blocks  # the superblock, which no file holds
    names = [Path(one.path).name for one in found.files]
    assert "unread.bin" not in names
    assert {"meta.db", "early.bin", "late.bin", "cat"} <= set(names)
    (whole,) = [one for one in found.files if one.path.endswith("early.bin")]
    assert whole.ranges == ((0, BIG),)
    assert volume.RECORD not in {one.path for one in found.files}  # this program read it, no start on a node does


def test_the_order_is_that_of_first_use(baked: DataVolume, found: HotList) -> None:
    at = {index: number for number, index in enumerate(found.blocks)}
    early, late = blocks_of(baked.path, "early.bin"), blocks_of(baked.path, "late.bin")
    program, superblock = blocks_of(baked.path, "cat")[0], 2
    assert at[superblock] < at[program] < at[early[1]] < at[early[-2]] < at[late[1]] < at[late[-2]]
    names = [Path(one.path).name for one in found.files]
    assert names.index("meta.db") < names.index("cat") < names.index("early.bin") < names.index("late.bin")


def test_without_tracing_the_page_cache_tells_the_files(baked: DataVolume) -> None:
    listed = hot(HotPlan(baked.path, run=RUN, method="page-cache"))
    early, unread, late = (blocks_of(baked.path, f"{name}.bin") for name in ("early", "unread", "late"))
    assert set(early) | set(late) <= set(listed.blocks)
    assert not set(unread[1:-1]) & set(listed.blocks)
    assert list(listed.blocks) == sorted(listed.blocks)
    assert listed.method == RESIDENT
    assert not reader.reader(listed, "x").ordered


def test_a_disk_without_a_table_is_read_from_its_first_byte(tmp_path: Path) -> None:
    oci.write_layout(tmp_path / "layout")
    volume = bake(BakePlan(tmp_path / "d.img", images=(ImageInput(tmp_path / "layout"),), size=1 << 30, target=TARGETS["raw"]))
    listed = hot(HotPlan(volume.path, run=("/bin/true",)))
    assert (listed.offset, listed.target) == (0, "raw")
    assert 0 in listed.blocks
    assert set(blocks_of(volume.path, "ld-linux*")) <= set(listed.blocks)


def _sectors(device: Path) -> int:
    """Sectors read since the device was made (Documentation/block/stat.rst)."""
    return int(Path(f"/sys/block/{device.name}/stat").read_text().split()[2])


def _as_script(found: HotList, device: Path) -> str:
    return reader.reader(found, "d.img").script


def _as_unit(found: HotList, device: Path) -> str:
    """What systemd would do: the variable, and the words of ExecStart."""
    text = reader.files(dataclasses.replace(found, target="raw"), "d.img")[".hot.service"]
    (variable,) = re.findall(r'^Environment="(.*)"$', text, re.MULTILINE)
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    return f"export {shlex.quote(variable)}; {command.replace('/dev/disk/by-label/BUILDER-DATA', str(device))}\n"


@pytest.mark.parametrize(("shell", "form"), [("dash", _as_script), ("bash", _as_script), ("dash", _as_unit)])
def test_the_reader_reads_exactly_the_blocks_of_the_list(
    baked: DataVolume, found: HotList, tmp_path: Path, shell: str, form: Callable[[HotList, Path], str]
) -> None:
    script = tmp_path / "hot.sh"
    part = start.extent(baked.path)
    with workplace.workplace(tmp_path / "reads") as place, disk.attached(baked.path, part) as device:
        script.write_text(form(found, device))
        before = _sectors(device)
        with trace.traced(device, place.folder / "tracing", place.folder.name) as tracer:
            subprocess.run([shell, script, device], check=True, capture_output=True)
            tracer.stop()
            reads = tracer.reads()
        assert (_sectors(device) - before) * 512 == found.bytes
    touched = {(part.offset + at) // BLOCK for one in reads for at in range(one.start, one.start + one.size, 4096)}
    assert touched == set(found.blocks)
    assert not [one for one in reads if "A" in one.flags]  # direct: nothing is read ahead into memory


def test_a_server_is_ended_and_what_it_read_till_then_counts(baked: DataVolume) -> None:
    listed = hot(HotPlan(baked.path, run=("/bin/sh", "-c", "cat /opt/app/early.bin > /dev/null; sleep 97.3"), seconds=5))
    assert set(blocks_of(baked.path, "early.bin")) <= set(listed.blocks)
    assert "sleep 97.3" not in subprocess.check_output(["ps", "-eo", "args"], text=True)


def test_a_container_that_fails_is_an_error(baked: DataVolume) -> None:
    with pytest.raises(BuilderError, match=r"registry.example.com/llm/tiny:v1: exit status 3"):
        hot(HotPlan(baked.path, run=("/bin/sh", "-c", "exit 3")))


def test_what_cannot_be_traced_is_refused(baked: DataVolume, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"acme/other:v1: not on the disk, which holds registry\.example\.com/llm/tiny:v1"):
        hot(HotPlan(baked.path, images=("acme/other:v1",)))
    with pytest.raises(ConfigError, match="no such file"):
        hot(HotPlan(tmp_path / "none.img"))
    with (tmp_path / "bare.img").open("wb") as out:
        out.truncate(1 << 30)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", tmp_path / "bare.img"], check=True)
    with pytest.raises(ConfigError, match="no build record"):
        hot(HotPlan(tmp_path / "bare.img"))
    with (tmp_path / "empty.img").open("wb") as out:
        out.truncate(1 << 30)
    with pytest.raises(IntegrityError, match="cannot be mounted"):
        hot(HotPlan(tmp_path / "empty.img"))


def test_a_killed_trace_leaves_nothing_for_long(baked: DataVolume, tmp_path: Path) -> None:
    """The next one removes its copy, mounts and device, and its instance of the kernel's tracing."""
    code = "import sys; from pathlib import Path; from builder.node.hot.start import HotPlan, hot; " \
           "hot(HotPlan(Path(sys.argv[1]), run=('/bin/sleep', '96.4')))"  # fmt: skip
    child = subprocess.Popen([sys.executable, "-c", code, str(baked.path)], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 120
    while "/bin/sleep 96.4" not in subprocess.check_output(["ps", "-eo", "args"], text=True):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait(BOUND_S)
    copy = baked.path.with_name("data.img.hot")
    assert copy.exists()
    assert any(text == f"file {copy}" for text in workplace.sweep())
    with workplace.workplace(tmp_path / "next") as place:
        part = start.extent(baked.path)
        with disk.attached(baked.path, part) as device, trace.traced(device, place.folder / "t", place.folder.name) as tracer:
            left = [p.name for p in tracer.folder.parent.glob("builder-*") if not (workplace.RUN / p.name[8:]).exists()]
            assert left == []


def code(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        cli([str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_command_writes_the_list_and_the_reader(
    baked: DataVolume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.img"
    subprocess.run(["cp", "--sparse=always", baked.path, path], check=True)
    listed = tmp_path / "d.img.hot.json"
    assert code("bake", "hot", path, "--run", "/bin/true", "--format", "json", "--reader-image", "acme/sh:1") == 0
    data = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.img", "d.img.hot.json", "d.img.hot.sh", "d.img.hot.toml"]
    assert json.loads(listed.read_text()) == data["hot"]
    assert 'source = "acme/sh:1"' in (tmp_path / "d.img.hot.toml").read_text()
    (tmp_path / "d.img.hot.sh").unlink()
    assert code("bake", "hot", path, "--list", listed) == 0
    assert (tmp_path / "d.img.hot.sh").exists()
    with path.open("r+b") as out:  # another disk now
        out.seek(600 << 20)
        out.write(b"x")
    assert code("bake", "hot", path, "--list", listed) == 3
    assert "was taken from" in capsys.readouterr().err


def test_without_root_it_says_so() -> None:
    code = "import sys; from builder.cli import main; sys.exit(main())"
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", code, "bake", "hot", "d.img"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3], env={**os.environ, "HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "builder bake hot needs root" in done.stderr


def test_the_benchmark_s_lazy_disk_holds_the_same_bytes_and_takes_writes(baked: DataVolume, tmp_path: Path) -> None:
    copy = node.fresh_copy(baked.path, tmp_path / "copy.img")
    with node.lazily(copy, tmp_path / "lazy", first_ms=1, at_once=8) as device:
        part = start.extent(baked.path)
        same = ["cmp", f"--ignore-initial={part.offset}:0", f"--bytes={32 << 20}", baked.path, device]
        subprocess.run(same, check=True)
        assert node.start_on(copy, RUN, device=device).run > 0
    done = subprocess.run(["cmp", baked.path, copy], check=False, capture_output=True)
    assert done.returncode == 1  # the container's start was written through
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.img"]


def test_a_block_of_the_lazy_disk_waits_once(baked: DataVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(lazy.time, "sleep", waits.append)
    shown = lazy.LazyDisk(baked.path, 0.1, 4)
    held = blocks.scan(baked.path).blocks
    first = next(index for index in held if index + 1 in held)
    body = shown.read(first * BLOCK + 100, BLOCK)
    assert shown.read(first * BLOCK + 100, BLOCK) == body
    assert waits == [0.1, 0.1]
    empty = (baked.size // BLOCK) // 3
    assert shown.read(empty * BLOCK, 10) == bytes(10)  # zeros are not in a snapshot
    assert waits == [0.1, 0.1]
