"""A baked disk proven, and damaged disks found out: a copy of the disk, containerd's CRI, runc."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.errors import BuilderError, CapabilityError, ClaimError, ConfigError, IntegrityError
from builder.node import containerd, disk, gpt, programs, volume, workplace
from builder.node.bake import BakePlan, DataVolume, bake
from builder.node.hot.start import HotPlan, hot
from builder.node.inputs import ImageInput
from builder.node.proof import cri, pause
from builder.node.targets import BOTTLEROCKET, CACHE_TREES, CONTAINERD, MODELS, TARGETS
from builder.node.verify import VerifyPlan, verify
from tests import oci
from tests.bounds import BOUND_S
from tests.disks import NAME, RUN, SIZE, copy_of, opened
from tests.leftovers import leftovers

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_stays")]
FOREIGN = "linux/riscv64"


def findings(plan: VerifyPlan) -> list[str]:
    """What a proof that fails says, in full."""
    with pytest.raises(ClaimError) as caught:
        verify(plan)
    assert caught.value.exit_code == 7
    found = caught.value.where["findings"]
    assert isinstance(found, list)
    return found


def test_kubelet_finds_the_image_by_every_name_and_starts_it(baked: DataVolume) -> None:
    before = baked.path.stat()
    show = """
        id -u; cat /opt/app/data.txt /proc/net/dev /proc/1/comm; echo no >&2
        while read -r _ place _ how _; do test $place != /var/lib/builder/models || echo models ${how%%,*}; done </proc/mounts
        printf end
    """
    report = verify(VerifyPlan(baked.path, run=("/bin/sh", "-c", show)))
    assert report.checks.keys() == {
        "build record", "partition table", "file system", "strays", "SELinux labels", "content", "unpacked layers", "weights",
        "compile caches", "free space",
    }  # fmt: skip
    (one,) = report.opened
    assert one.checks.keys() == {"pinned and managed", f"image {NAME}", f"CRI {NAME}", f"start {NAME}"}
    assert one.checks[f"CRI {NAME}"] == "by tag, digest, tag@digest and id; listed; pinned"
    (run,) = report.runs
    assert run.user == "10001:0"
    lines = run.output.splitlines()
    lines.remove("no")  # of standard error, which is logged beside standard output
    assert lines[:2] == ["10001", "second layer"]
    assert [line.split(":")[0].strip() for line in lines if ":" in line] == ["lo"]  # no other network interface
    assert lines[-3:] == ["sh", "models ro", "end"]  # it is process 1, in a namespace of its own
    assert run.reference == f"registry.example.com/llm/tiny@{baked.images[0]['digest']}"
    after = baked.path.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)  # only a copy was written


def test_nothing_can_be_pulled(baked: DataVolume, tmp_path: Path) -> None:
    """Not even from a server on this very machine, which a containerd in the machine's network would ask."""
    path = copy_of(baked.path, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server, opened(path) as root:
        server.settimeout(0.1)
        folder = workplace.RUN / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        with (
            containerd.containerd(root / CONTAINERD, folder, sandbox_image=pause.NAME) as daemon,
            cri.connected(daemon.socket) as client,
        ):
            port = server.getsockname()[1]
            with pytest.raises(BuilderError, match=r"PullImage: .*connection refused"):
                client.call("PullImage", image={"image": f"127.0.0.1:{port}/a/b:v1"})
            with pytest.raises(TimeoutError):
                server.accept()
            assert not client.call("ImageStatus", image={"image": "registry.example.com/llm/other:v1"}).HasField("image")


def _layer(root: Path, number: int) -> Path:
    return root / CONTAINERD / CACHE_TREES[2] / "snapshots" / str(number) / "fs"


def _data(root: Path) -> Path:
    return _layer(root, 2) / "opt/app/data.txt"


def _change_file(root: Path) -> None:
    body = _data(root).read_bytes()
    _data(root).write_bytes(b"S" + body[1:])
    assert _data(root).stat().st_size == len(body)


def _flip_weight(root: Path) -> None:
    path = next((root / MODELS).rglob("part-1.safetensors"))
    with path.open("r+b") as out:
        out.seek(123_456)
        byte = out.read(1)[0]
        out.seek(123_456)
        out.write(bytes([byte ^ 1]))


def _blobs(root: Path) -> Path:
    return root / CONTAINERD / CACHE_TREES[0] / "blobs" / "sha256"


def _flip_config(root: Path) -> None:
    path = min(_blobs(root).iterdir(), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1] + b" ")


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (_change_file, r"^unpacked layers: .*snapshots/2/fs is [0-9a-f]{64}, expected [0-9a-f]{64}$"),
    (lambda root: (_layer(root, 1) / "bin/id").chmod(0o4755), r"^unpacked layers: .*snapshots/1/fs is [0-9a-f]{64}, expected"),
    (lambda root: os.removexattr(_data(root), "security.selinux"), r"^SELinux labels: .*data.txt: not system_u:object_r:"),
    (_flip_weight, "^weights: sha256:[0-9a-f]{64}: .*part-1.safetensors"),
    (lambda root: (root / MODELS / ("0" * 64)).mkdir(), "^weights: sha256:0{64}: on the disk, not in the build record"),
    (_flip_config, "^content: sha256:[0-9a-f]{64} has sha256"),
    (lambda root: (root / CONTAINERD / "junk").mkdir(), "^strays: /var/lib/containerd/junk: does not belong"),
    (lambda root: (root / "var/lib/kubelet").mkdir(), "^strays: /var/lib/kubelet: does not belong"),
    (lambda root: (root / "home").mkdir(), "^strays: /home: does not belong"),
]  # fmt: skip


def test_every_damage_is_found_and_none_hides_another(baked: DataVolume, tmp_path: Path) -> None:
    path = copy_of(baked.path, tmp_path)
    with opened(path) as root:
        for damage, _ in DAMAGES:
            damage(root)
    found = findings(VerifyPlan(path, run=RUN))
    for _, says in DAMAGES:
        assert len([text for text in found if re.search(says, text)]) == 1, says
    # What is left are the consequences: the empty model has neither marker nor label, and the config cannot be read.
    rest = [text for text in found if not any(re.search(says, text) for _, says in DAMAGES)]
    assert all(text.startswith("containerd ") or "0" * 64 in text for text in rest), rest


def test_a_missing_layer_and_no_container_starts(baked: DataVolume, tmp_path: Path) -> None:
    path = copy_of(baked.path, tmp_path)
    with opened(path) as root:
        shutil.rmtree(_layer(root, 2))
    found = findings(VerifyPlan(path, run=RUN))
    assert len(found) == 2
    assert re.search("^unpacked layers: .*snapshots/2/fs is missing", found[0])
    assert re.search(f"^containerd [0-9.]+: start {NAME}: .*snapshots/2/fs", found[1])


def test_a_disk_that_leads_onto_this_machine_is_not_worked_on(baked: DataVolume, tmp_path: Path) -> None:
    path, here = copy_of(baked.path, tmp_path), tmp_path / "here"
    here.mkdir()
    with opened(path) as root:
        (root / CONTAINERD).rename(root / "mnt/containerd")
        (root / CONTAINERD).symlink_to(here)
    assert findings(VerifyPlan(path, run=RUN)) == [f"strays: /{CONTAINERD}: a link to {here}, expected a folder or file"]
    with pytest.raises(IntegrityError, match=f"/{CONTAINERD}: a link to {here}"):
        hot(HotPlan(path))
    assert list(here.iterdir()) == []


def test_a_kept_or_missing_blob_a_full_volume_and_no_record(baked: DataVolume, layout: Path, tmp_path: Path) -> None:
    path = copy_of(baked.path, tmp_path)
    image = baked.images[0]
    with opened(path) as root:
        kept = image["layers"][0][0]
        shutil.copy(layout / "blobs" / kept.replace(":", "/"), _blobs(root))
        (_blobs(root) / image["config"].removeprefix("sha256:")).unlink()
        volume.label_all(root, BOTTLEROCKET)
        with (root / "opt" / "junk").open("wb") as out:
            os.posix_fallocate(out.fileno(), 0, shutil.disk_usage(root).free - (40 << 20))
    found = findings(VerifyPlan(path, run=RUN))
    assert f"content: {NAME}: compressed layer {kept} was not dropped" in found
    assert f"content: {NAME}: {image['config']} is missing" in found
    for name in (NAME, f"{NAME}@{image['digest']}", image["config"]):
        assert [text for text in found if text.endswith(f"CRI {NAME}: {name} is absent")], name
    assert any(re.search("^free space: .* expected 15%", text) for text in found)
    with opened(path) as root:
        (root / volume.RECORD).unlink()
    assert any(re.search("^build record: .*bake.json", text) for text in findings(VerifyPlan(path, run=RUN)))


def test_lost_attributes_of_a_layer_are_found(tmp_path: Path) -> None:
    """What a plain copy loses: the mark of a replaced folder, a file's capability; either changes what a container sees."""
    oci.write_layout(tmp_path / "layout", whiteout=True)
    made = bake(BakePlan(tmp_path / "o.img", images=(ImageInput(tmp_path / "layout"),), size=SIZE))
    run = ("/bin/sh", "-c", "test ! -e /bin/true && test ! -e /opt/base/gone")
    assert ", 1 whiteouts, 1 opaque:" in verify(VerifyPlan(made.path, run=run)).checks["unpacked layers"]
    with opened(made.path) as root:
        os.removexattr(_layer(root, 2) / "opt/base", "trusted.overlay.opaque")
        os.setxattr(_layer(root, 1) / "bin/id", "security.capability", bytes.fromhex("0100000200040000" + "00" * 12))
    found = findings(VerifyPlan(made.path, run=run))
    for number in (1, 2):
        assert re.search(f"^unpacked layers: .*snapshots/{number}/fs is [0-9a-f]{{64}}, expected", found[number - 1])
    assert "exit status 1" in found[2]  # what it replaced is back


def test_kubelet_would_be_told_that_nothing_is_pinned(baked: DataVolume, tmp_path: Path) -> None:
    path = copy_of(baked.path, tmp_path)
    by_digest = f"{NAME.rsplit(':', 1)[0]}@{baked.images[0]['digest']}"
    ctr_on(path, *(["images", "label", name, "io.cri-containerd.pinned="] for name in (NAME, by_digest)))
    found = findings(VerifyPlan(path, run=RUN))
    assert [text for text in found if text.endswith(f"CRI {NAME}: {NAME} is not pinned")]
    assert len(found) == 2 + 4  # the labels, and every name


def ctr_on(path: Path, *commands: list[str]) -> None:
    """Run ctr on a disk, and leave it as a bake does."""
    with opened(path) as root:
        folder = workplace.RUN / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        with containerd.containerd(root / CONTAINERD, folder) as daemon:
            for words in commands:
                daemon.ctr(*words)
        volume.keep_only_caches(root)
        volume.label_all(root, BOTTLEROCKET)


@pytest.mark.parametrize(
    ("ctr", "says"),
    [
        (["images", "label", NAME, "io.cri-containerd.pinned="], "io.cri-containerd.pinned is None, expected 'pinned'"),
        (["images", "label", NAME, "io.cri-containerd.image="], "io.cri-containerd.image is None, expected 'managed'"),
        (["images", "tag", NAME, "registry.example.com/a:1"], "registry.example.com/a:1: on the disk, not in the build record"),
        (["images", "rm", NAME], f"image {NAME}: {NAME} is absent, expected sha256:"),
        (["images", "rm", "DIGEST"], f"image {NAME}: registry.example.com/llm/tiny@sha256:[0-9a-f]{{64}} is absent"),
    ],
)  # fmt: skip
def test_what_kubelet_would_not_find_or_would_remove(baked: DataVolume, tmp_path: Path, ctr: list[str], says: str) -> None:
    path = copy_of(baked.path, tmp_path)
    by_digest = f"{NAME.rsplit(':', 1)[0]}@{baked.images[0]['digest']}"
    ctr_on(path, [by_digest if word == "DIGEST" else word for word in ctr])
    (found,) = findings(VerifyPlan(path, run=RUN))
    assert re.search(says, found)


def test_the_entry_point_gets_the_arguments(tmp_path: Path) -> None:
    oci.write_layout(tmp_path / "layout", entrypoint=("/bin/cat", "/opt/app/data.txt"))
    made = bake(BakePlan(tmp_path / "o.img", images=(ImageInput(tmp_path / "layout"),), size=SIZE))
    (run,) = verify(VerifyPlan(made.path, run=("/opt/base/gone",))).runs
    assert run.output == "second layer\ng"
    assert run.arguments == ("/bin/cat", "/opt/app/data.txt", "/opt/base/gone")
    (found,) = findings(VerifyPlan(made.path))  # a server would not end
    assert "say what to run with --run" in found


def test_an_image_of_ours_that_runs_as_root_breaks_its_claim(tmp_path: Path) -> None:
    oci.write_layout(tmp_path / "layout", user="0", entrypoint=("/bin/true", "-m", "builder.runtime"))
    oci.write_layout(tmp_path / "nobody", name="registry.example.com/llm/nobody:v1", user="nobody")
    images = (ImageInput(tmp_path / "layout"), ImageInput(tmp_path / "nobody"))
    made = bake(BakePlan(tmp_path / "o.img", images=images, size=SIZE))
    found = findings(VerifyPlan(made.path, run=("/bin/true",)))
    assert "runs as 0:0, expected another user than root" in found[0]
    assert re.search("start registry.example.com/llm/nobody:v1: CreateContainer: .*/etc/passwd", found[1])  # who is that?


def test_a_container_that_fails_or_hangs(baked: DataVolume) -> None:
    (found,) = findings(VerifyPlan(baked.path, run=("/bin/sh", "-c", "echo why >&2; exit 3")))
    assert found.endswith(f"start {NAME}: exit status 3\n    why")
    (found,) = findings(VerifyPlan(baked.path, run=("/bin/sh", "-c", "sleep 99"), run_s=1.0))
    assert found.endswith("did not end within 1 s")


def test_an_image_for_another_processor_is_checked_but_not_started(tmp_path: Path) -> None:
    oci.write_layout(tmp_path / "layout", arch=FOREIGN.split("/")[1])
    made = bake(BakePlan(tmp_path / "o.img", images=(ImageInput(tmp_path / "layout"),), size=SIZE, platform=FOREIGN))
    (one,) = verify(VerifyPlan(made.path)).opened
    assert one.runs == ()
    assert re.match(f"not started: {FOREIGN} on linux/", one.checks[f"start {NAME}"])
    with opened(made.path) as root:
        _change_file(root)
    assert findings(VerifyPlan(made.path))[0].startswith("unpacked layers: ")


def test_a_disk_without_a_table_is_found_by_its_label(layout: Path, tmp_path: Path) -> None:
    raw = TARGETS["raw"]
    made = bake(BakePlan(tmp_path / "o.img", images=(ImageInput(layout),), size=SIZE, target=raw))
    report = verify(VerifyPlan(made.path, run=RUN))
    assert report.target == "raw"
    assert report.checks["partition table"] == "none, as expected"
    assert report.checks["file system"] == "xfs 'BUILDER-DATA', 1.00 GiB"
    assert report.checks["SELinux labels"] == "none, as expected"
    (found,) = [f for f in findings(VerifyPlan(made.path, run=RUN, target="bottlerocket")) if "SELinux" not in f]
    assert found == "partition table: none; bottlerocket finds its partition by the label 'BOTTLEROCKET-DATA'"
    subprocess.run(["xfs_admin", "-L", "OTHER", made.path], check=True, capture_output=True)
    assert findings(VerifyPlan(made.path, run=RUN)) == ["file system: label is 'OTHER', expected 'BUILDER-DATA'"]


def test_a_wrong_partition_label_and_a_wrong_target(baked: DataVolume, tmp_path: Path) -> None:
    path = copy_of(baked.path, tmp_path)
    table = gpt.read(path)
    part = table.partitions[0]
    gpt.write(path, table.disk_guid, gpt.Partition(part.type_guid, part.guid, part.first, part.last, ""))
    assert findings(VerifyPlan(path, run=RUN)) == ["partition table: label is '', expected 'BOTTLEROCKET-DATA'"]
    with path.open("r+b") as disk:
        disk.seek(part.offset)
        disk.write(bytes(4096))
    (found,) = findings(VerifyPlan(path, run=RUN))
    assert found.startswith("file system: cannot be mounted: ")


def test_two_proofs_of_one_disk_exclude_each_other(baked: DataVolume) -> None:
    with (
        workplace.workplace(baked.path.with_name("data.img.check")),
        pytest.raises(CapabilityError, match="another process works on it"),
    ):
        verify(VerifyPlan(baked.path, run=RUN))


def test_a_file_that_has_the_name_of_the_copy_is_neither_written_nor_removed(baked: DataVolume) -> None:
    foreign = baked.path.with_name("data.img.check")
    foreign.write_text("mine")
    try:
        with pytest.raises(ConfigError, match=r"data\.img\.check: is there already"):
            verify(VerifyPlan(baked.path, run=RUN))
        assert foreign.read_text() == "mine"
    finally:
        foreign.unlink()


def test_a_proof_that_comes_second_leaves_the_copy_of_the_first(baked: DataVolume) -> None:
    copy = baked.path.with_name("data.img.check")
    with workplace.workplace(copy, temporary=True):
        copy.write_text("of the first")
        with pytest.raises(CapabilityError, match="another process works on it"):
            verify(VerifyPlan(baked.path, run=RUN))
        assert copy.read_text() == "of the first"


def test_a_database_that_containerd_cannot_open_hides_no_other_finding(baked: DataVolume, tmp_path: Path) -> None:
    path = copy_of(baked.path, tmp_path)
    with opened(path) as root:
        (root / CONTAINERD / CACHE_TREES[1] / "meta.db").write_bytes(b"\x5a" * 65536)
        (root / "home").mkdir()
    strays, ended = findings(VerifyPlan(path, run=RUN))
    assert strays.startswith("strays: /home: does not belong")
    assert re.match(r"containerd \d+\.\d+\.\d+: containerd: .*(ended with status|did not answer|exit status)", ended)


def test_a_containerd_that_starts_nowhere_is_no_finding(baked: DataVolume, tmp_path: Path) -> None:
    """It is this machine's fault, and the disk may be sound."""
    for name in ("containerd", "ctr", "containerd-shim-runc-v2"):
        (tmp_path / name).write_text("#!/bin/sh\ncase $1 in --version) echo containerd x v1.7.24 y ;; *) exit 9 ;; esac\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(BuilderError, match="ended with status 9") as caught:
        verify(VerifyPlan(baked.path, run=RUN, programs=(programs.find(tmp_path),)))
    assert caught.value.exit_code == 1


def test_what_the_file_system_cannot_read_is_a_finding(baked: DataVolume, tmp_path: Path) -> None:
    """An inode without its magic, as a damaged block leaves it: the kernel refuses it and its neighbours."""
    path = copy_of(baked.path, tmp_path)
    with opened(path) as root:
        inode = (_layer(root, 2) / "opt/app").stat().st_ino
    with disk.attached(path, gpt.read(path).partitions[0]) as device:
        subprocess.run(["xfs_db", "-x", "-c", f"inode {inode}", "-c", "write -d core.magic 0", device], check=True)
    found = findings(VerifyPlan(path, run=RUN))
    refused = [text for text in found if re.fullmatch(r"[a-zA-Z ]+: /[\w./]+: Structure needs cleaning", text)]
    assert len(refused) > 1, found  # one is not the end of the others


def test_what_a_boot_lacks_is_known_before_the_work(baked: DataVolume, tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(bytes(4096))
    with pytest.raises(ConfigError, match="not an x86 kernel"):
        verify(VerifyPlan(baked.path, run=("/bin/false",), vm=True, kernel=tmp_path / "bzImage"))


def test_a_killed_check_leaves_no_container_for_long(baked: DataVolume, tmp_path: Path) -> None:
    """A container outlives its shim and containerd; the next run finds and ends it, and forgets it in runc's records."""
    path = copy_of(baked.path, tmp_path)
    child = subprocess.Popen([sys.executable, "-c", HANGING, str(path)], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + BOUND_S
    while not [line for line in _arguments() if line.endswith("sleep 98.6153")]:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    mine = [p for p in workplace.RUNC_STATE.glob("*/state.json") if _folder_of(path) in p.read_text()]
    assert len(mine) == 2  # the pod's first process and the container
    child.kill()
    child.wait(BOUND_S)
    removed = workplace.sweep()
    assert f"file {path}.check" in removed
    assert not [line for line in _arguments() if line.endswith("sleep 98.6153")]
    assert not [p for p in mine if p.exists()]
    assert leftovers(tmp_path) == []


def _folder_of(path: Path) -> str:
    name = hashlib.sha256(f"{path.resolve()}.check".encode()).hexdigest()[:16]
    return f"{workplace.RUN / name}/"


def _arguments() -> list[str]:
    return subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines()


HANGING = """
import sys
from pathlib import Path
from builder.node.verify import VerifyPlan, verify
verify(VerifyPlan(Path(sys.argv[1]), run=("/bin/sleep", "98.6153")))
"""
