"""The parts of a proof that need neither root nor a containerd: tables, superblocks, the first process of a pod, messages."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from builder.errors import CapabilityError
from builder.node import disk, gke, gpt, layout, vhd
from builder.node.proof import api, cri, exports, files, pause, secondary, table
from builder.node.proof.report import Notes, first
from builder.node.proof.start import said
from builder.node.targets import BOTTLEROCKET, TARGETS, WholeDisk
from tests.bounds import BOUND_S
from tests.conftest import missing

SIZE = 1 << 30
RAW = TARGETS["raw"]


def write_disk(path: Path, *, label: str = "", size: int = SIZE, part: gpt.Partition | None = None) -> Path:
    """A disk with an ext4 file system, in the partition `part` or without a table."""
    disk.create(path, SIZE)
    if part:
        gpt.write(path, uuid.UUID(int=7), part)
    tree = path.with_name("tree")
    tree.mkdir(exist_ok=True)
    extent = gpt.Partition(part.type_guid, part.guid, part.first, part.last, "") if part else WholeDisk(size)
    disk.make_ext4_from(tree, path, extent, label=label)
    return path


def findings(path: Path, target: str) -> list[str]:
    notes = Notes()
    extent = table.locate(path, notes)
    if extent:
        table.audit(path, extent, TARGETS[target], notes)
    return notes.findings


def test_the_two_kinds_of_disk_are_told_apart(tmp_path: Path) -> None:
    whole = write_disk(tmp_path / "whole", label="BUILDER-DATA")
    parted = write_disk(tmp_path / "parted", part=BOTTLEROCKET.partition(SIZE))
    assert findings(whole, "raw") == findings(whole, "gke-secondary") == findings(parted, "bottlerocket") == []
    assert table.superblock(whole, WholeDisk(SIZE)) == table.FileSystem("ext4", "BUILDER-DATA", SIZE)
    (found,) = findings(whole, "bottlerocket")
    assert found.startswith("partition table: none; bottlerocket finds its partition by the label")
    assert findings(parted, "raw") == [
        "partition table: there is one, with 'BOTTLEROCKET-DATA'; raw expects none",
        "file system: label is '', expected 'BUILDER-DATA'",
    ]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("label", "OTHER", "label is 'OTHER', expected 'BOTTLEROCKET-DATA'"),
        ("type_guid", "0fc63daf-8483-4772-8e79-3d69d8477de4", "type_guid is '0fc63daf"),
        ("guid", "0fc63daf-8483-4772-8e79-3d69d8477de4", "guid is '0fc63daf"),
        ("first", 4096, "first is '4096', expected '2048'"),
    ],
)
def test_a_partition_that_the_node_would_not_take(tmp_path: Path, field: str, value: object, says: str) -> None:
    good = BOTTLEROCKET.partition(SIZE)
    assert good is not None
    fields = {name: getattr(good, name) for name in ("type_guid", "guid", "first", "last", "label")}
    kind = type(fields[field])
    part = gpt.Partition(**{**fields, field: kind(value)})
    found = findings(write_disk(tmp_path / "d", part=part), "bottlerocket")
    assert [text for text in found if says in text], found


def test_damaged_tables_are_found(tmp_path: Path) -> None:
    path = write_disk(tmp_path / "d", part=BOTTLEROCKET.partition(SIZE))
    with path.open("r+b") as out:
        out.seek(512 + 40)
        out.write(b"\xff")
    assert len(findings(path, "bottlerocket")) == 1  # one copy is damaged, the other still says where the partition is
    with path.open("r+b") as out:
        out.seek(SIZE - 512 + 40)
        out.write(b"\xff")
    (found,) = findings(path, "bottlerocket")
    assert "and no XFS or ext4 file system begins with the disk" in found
    nothing = tmp_path / "zero"
    disk.create(nothing, SIZE)
    assert len(findings(nothing, "raw")) == 1


def test_a_table_before_a_file_system_is_told(tmp_path: Path) -> None:
    path = write_disk(tmp_path / "d", label="BUILDER-DATA")
    with path.open("r+b") as out:  # ext4 leaves the first 1024 bytes alone
        out.seek(512)
        out.write(b"EFI PART")
    assert findings(path, "raw") == ["partition table: a table and a file system share the first sectors"]


def test_a_file_system_of_another_size_or_with_newer_features(tmp_path: Path) -> None:
    (found,) = findings(write_disk(tmp_path / "small", label="BUILDER-DATA", size=SIZE // 2), "raw")
    assert found.startswith("file system: 512 MiB in 1.00 GiB")
    path = tmp_path / "xfs"
    disk.create(path, SIZE)
    subprocess.run([disk.process.need("mkfs.xfs"), "-q", *disk.XFS_OPTIONS, "-L", "BUILDER-DATA", path], check=True)
    assert table.superblock(path, WholeDisk(SIZE)) == table.FileSystem("xfs", "BUILDER-DATA", SIZE, 0x0B)
    assert findings(path, "raw") == []
    with path.open("r+b") as out:
        out.seek(disk.XFS_INCOMPAT_AT)
        out.write((0x0B | 0x40).to_bytes(4, "big"))  # exchange-range, of Linux 6.10
    assert findings(path, "raw") == ["file system: incompatible features 0x40, which Linux 6.1 does not know"]


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_the_first_process_of_a_pod_waits_until_it_is_killed(tmp_path: Path, platform: str) -> None:
    body = pause.executable(platform)
    assert len(body) < 200
    elf = ELFFile(io.BytesIO(body))
    assert (elf.elfclass, elf.header["e_type"], elf.num_segments()) == (64, "ET_EXEC", 1)
    segment = elf.get_segment(0)
    assert (
        segment["p_vaddr"] <= elf.header["e_entry"] < segment["p_vaddr"] + segment["p_filesz"] == segment["p_vaddr"] + len(body)
    )
    path = tmp_path / "pause"
    path.write_bytes(body)
    path.chmod(0o755)
    emulator = [] if platform == layout.host_platform() else [shutil.which(f"qemu-{_MACHINES[platform]}-static") or ""]
    if emulator == [""]:
        missing("arm64", "no emulator for a program of the other processor (apt-get install qemu-user-static)")
    child = subprocess.Popen([*emulator, path])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
        used = [sum(map(int, _stat(child.pid)[11:13])) for _ in range(2) if time.sleep(0.1) is None]
        assert used[0] == used[1]  # it sleeps; a loop would use a processor
    finally:
        child.kill()
    assert child.wait(BOUND_S) == -9


_MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def test_another_processor_has_no_first_process() -> None:
    with pytest.raises(CapabilityError, match="linux/riscv64: no pause program"):
        pause.executable("linux/riscv64")


def test_the_pause_image_is_a_whole_layout(tmp_path: Path) -> None:
    pause.write(tmp_path / "p", layout.host_platform())
    with layout.open_layout(tmp_path / "p") as opened:
        image = layout.find_image(opened)
    assert (image.reference, image.entrypoint) == (pause.NAME, ("/pause",))


def test_messages_are_those_of_the_protocol() -> None:
    """Bytes by the rules of protobuf: key = number << 3 | kind, then length or varint."""
    known = api.classes()
    image = known["Image"].FromString(b"\x0a\x02id\x12\x01a\x12\x01b\x2a\x03\x08\xd1\x0f\x40\x01\x7a\x01?")
    assert (image.id, list(image.repo_tags), image.uid.value, image.pinned) == ("id", ["a", "b"], 2001, True)
    status = known["ContainerStatusResponse"].FromString(b"\x0a\x02\x38\x03\x12\x06\x0a\x01k\x12\x01v")
    assert (status.status.exit_code, dict(status.info)) == (3, {"k": "v"})
    mount = {"container_path": "/a", "host_path": "/b", "readonly": True}
    config = known["ContainerConfig"](mounts=[mount], args=["x"], log_path="l")
    assert config.SerializeToString() == b"\x22\x01x\x3a\x0a\x0a\x02/a\x12\x02/b\x18\x01\x5a\x01l"


def test_every_method_has_its_messages() -> None:
    assert {f"{method}{end}" for method in api.METHODS for end in ("Request", "Response")} <= api.MESSAGES.keys()
    assert all(known.DESCRIPTOR.full_name == f"runtime.v1.{name}" for name, known in api.classes().items())


@pytest.mark.parametrize("module", ["grpc", "google.protobuf"])
def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    cri.need_client()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CapabilityError, match=f"{module}: not installed") as caught:
        cri.need_client()
    assert "coldstart-builder[bake]" in caught.value.hint


def test_a_container_log_is_put_together(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert said(log) == ""
    time_ = "2026-01-02T03:04:05.678901234Z"
    log.write_text(f"{time_} stdout F one\n{time_} stderr F two words\n{time_} stdout P three,\n{time_} stdout F  done\n")
    assert said(log) == "one\ntwo words\nthree, done\n"
    log.write_bytes(f"{time_} stdout P end\n".encode() + f"{time_} stdout F \xff\n".encode("latin-1"))
    assert said(log) == "end\ufffd\n"


def test_many_findings_are_counted() -> None:
    assert first(["a", "b"]) == ["a", "b"]
    assert first([str(n) for n in range(9)]) == ["0", "1", "2", "3", "4", "and 4 more"]


def recorded(image: dict[str, object] | None = None, **more: object) -> str:
    """A build record with one image."""
    plain = dict.fromkeys(("reference", "digest", "manifest", "config", "platform", "user"), "")
    whole = {**plain, "layers": [], "entrypoint": [], "unpacked": [], **(image or {})}
    raw = {"format": 1, "tool": "", "containerd": "", "filesystem": "", "weights": {}, "images": [whole], **more}
    return json.dumps(raw)


def test_a_build_record_that_can_be_read(tmp_path: Path) -> None:
    """What the others differ from in one thing each."""
    path = tmp_path / "var/lib/builder/bake.json"
    path.parent.mkdir(parents=True)
    path.write_text(recorded({"layers": [["sha256:aa", 1]]}, target="raw", compiled={"ab": 7}, weights={"sha256:aa": 7}))
    notes = Notes()
    assert files.record(tmp_path, notes)["target"] == "raw"
    assert notes.findings == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting property name"),
        ("[]", r"format \[\]"),
        ('{"format": 9}', "format 9"),
        ('{"format": 1}', "tool is None, expected a str"),
        ('{"format": 1, "tool": "", "containerd": "", "filesystem": "", "weights": {}, "images": [7]}', "reference is 7"),
        (recorded(target=["raw"]), "target is ['raw'], expected one of bottlerocket"),
        (recorded(target="moon"), "target is 'moon', expected one of bottlerocket"),
        (recorded(weights={"sha256:aa": "much"}), "weights is {'sha256:aa': 'much'}"),
        (recorded(compiled=[1]), "compiled is [1], expected bytes by digest"),
        (recorded({"entrypoint": [1]}), "entrypoint is [1], expected words"),
        (recorded({"layers": [["sha256:aa"]]}), "a layer is ['sha256:aa'], expected its digest and its size"),
        (recorded({"unpacked": [{"chain": "a", "path": "/etc", "sha256": "b"}]}), "path is '/etc'"),
        (recorded({"unpacked": [{"chain": "a", "path": "a/../../../etc", "sha256": "b"}]}), "path is 'a/../../../etc'"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_build_record_that_cannot_be_read(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "var/lib/builder/bake.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    notes = Notes()
    assert files.record(tmp_path, notes) == {}
    (found,) = notes.findings
    assert says.replace("\\", "") in found


@pytest.mark.parametrize(
    "name",
    [
        "var",
        "var/lib/containerd",
        "var/lib/builder/models",
        "var/lib/builder/bake.json",
        "var/lib/containerd/io.containerd.metadata.v1.bolt",
        "var/lib/containerd/io.containerd.content.v1.content/ingest",
        "var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs",
    ],
)
def test_a_folder_of_the_disk_that_leads_out_of_it(tmp_path: Path, name: str) -> None:
    """containerd, which runs as root, would write into this machine's."""
    root = tmp_path / "root"
    layer = root / "var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/2/fs"
    layer.mkdir(parents=True)
    (layer / "sh").symlink_to("/bin/busybox")  # of a layer: a container's own affair
    assert files.links(root) == []
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(tmp_path / "aside")
    path.symlink_to("/etc")
    assert files.links(root) == [f"/{name}: a link to /etc, expected a folder or file"]


def test_a_vhd_is_the_disk_and_a_footer(tmp_path: Path) -> None:
    path = tmp_path / "o.img"
    disk.create(path, 8 << 20)
    with path.open("r+b") as out:
        out.seek(5 << 20)
        out.write(b"data")
    azure = TARGETS["azure-data"]

    def faults() -> list[str]:
        notes = Notes()
        exports.audit(path, azure, notes)
        return notes.findings

    assert faults() == []  # only the raw disk was kept
    twin = tmp_path / "o.img.vhd"
    vhd.write(path, twin)
    assert faults() == []
    whole = twin.read_bytes()
    for at, byte, says in [
        (5 << 20, b"D", "differs from the disk at byte 5242880 or soon after"),
        (1 << 20, b"x", "differs from the disk at byte 1048576 or soon after"),
        ((8 << 20) + 60, b"\0\0\0\x03", "footer: disk type is 3, expected 2"),
        ((8 << 20) + 48, b"\x01", "footer: current size is "),
        (8 << 20, b"C", "footer: cookie is "),
    ]:
        twin.write_bytes(whole[:at] + byte + whole[at + len(byte) :])
        subprocess.run(["fallocate", "--dig-holes", twin], check=True)
        assert [text for text in faults() if says in text], says
    twin.write_bytes(whole[:-1])
    assert faults() == ["VHD: o.img.vhd has 8389119 bytes, expected 8389120"]


def test_the_lists_of_a_secondary_disk(tmp_path: Path) -> None:
    layer = tmp_path / "snapshots/1/fs"
    layer.mkdir(parents=True)
    (layer / "a").write_text("a")
    record = {"images": [{"reference": "registry.example.com/a:v1", "unpacked": [{"chain": "sha256:aa"}]}]}
    (tmp_path / gke.LAYERS).write_text(f"sha256:aa snapshots/1/fs {gke.layer_md5(layer)}\n")
    (tmp_path / gke.IMAGES).write_text("REF TYPE DIGEST\nregistry.example.com/a:v1 t d\n")

    def faults() -> list[str]:
        notes = Notes()
        secondary.audit(tmp_path, record, notes)
        return notes.findings

    assert faults() == []
    (layer / "a").write_text("b")
    (tmp_path / "home").mkdir()
    (tmp_path / gke.IMAGES).write_text("REF TYPE DIGEST\n")
    stray, layers, images = faults()
    assert stray == "strays: /home: does not belong on a secondary disk"
    assert layers.startswith("snapshots.metadata: sha256:aa at /snapshots/1/fs has md5 ")
    assert images == "images.metadata: registry.example.com/a:v1 is not in /images.metadata"
    (tmp_path / gke.LAYERS).write_text("sha256:bb ../../etc 0\n")
    found = faults()
    assert "snapshots.metadata: sha256:aa is not listed" in found
    assert "snapshots.metadata: sha256:bb is listed, not in the build record" in found
    assert "snapshots.metadata: sha256:bb at /../../etc has md5 missing, expected 0" in found
    (tmp_path / gke.LAYERS).write_text("one two\n")
    assert any("a line is not `chain path md5`" in text for text in faults())
