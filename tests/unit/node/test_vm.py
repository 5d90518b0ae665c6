"""The virtual machine's parts that are plain text and bytes. Boots are in tests/integration/kernel/test_vm.py."""

from __future__ import annotations

import base64
import lzma
import os
import stat
import subprocess
from pathlib import Path

import pytest

from builder import render, resources
from builder.errors import CapabilityError, ConfigError
from builder.node import targets
from builder.node.vm import boot, initrd, kernel, qemu, report, selinux, volumes
from builder.node.vm.plan import VmCommand

COMMANDS = (
    VmCommand("registry.example.com/a@sha256:1", ("/bin/sh", "-c", "id -u; echo \"$HOME\" '`date`'")),
    VmCommand("b@sha256:2", ("/bin/true", "a b", "")),
)


def module(name: str, depends: str = "") -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=" + name.encode() + b"\0"


def image(path: Path, version: str = "6.1.0-56-cloud-amd64 (builder@example.com) #1 SMP") -> Path:
    """The head of a bzImage, as Linux Documentation/arch/x86/boot.rst draws it."""
    body = bytearray(0x1000)
    body[0x202:0x206] = b"HdrS"
    body[0x20E:0x210] = (0x300).to_bytes(2, "little")
    body[0x500 : 0x500 + len(version)] = version.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def tree(root: Path, version: str = "6.1.0-56-cloud-amd64", *, without: str = "") -> Path:
    """A kernel with its modules, laid out as the package does. Some are packed, some built in."""
    folder = root / "lib" / "modules" / version
    (folder / "kernel").mkdir(parents=True)
    (folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio-ring.ko\n")
    made = {
        "virtio_pci": "virtio,virtio_ring", "virtio": "virtio_ring", "virtio_blk": "virtio", "xfs": "libcrc32c",
        "libcrc32c": "", "overlay": "",
    }  # fmt: skip
    for name, depends in made.items():
        if name != without:
            (folder / "kernel" / f"{name.replace('_', '-')}.ko.xz").write_bytes(lzma.compress(module(name, depends)))
    return image(root / "boot" / f"vmlinuz-{version}", f"{version} (x) #1")


def test_modules_are_loaded_after_those_they_need(tmp_path: Path) -> None:
    found = kernel.usable(tree(tmp_path))
    names = [path.name.split(".")[0] for path in found.modules]
    assert names == ["virtio", "virtio-pci", "virtio-blk", "libcrc32c", "xfs", "overlay"]  # ext4 and virtio_ring are built in
    assert found.version == "6.1.0-56-cloud-amd64"
    assert kernel.read(found.modules[0]).startswith(b"\x7fELF")


def test_the_newest_usable_kernel_is_taken(tmp_path: Path) -> None:
    tree(tmp_path / "old", "6.1.0-9-amd64")
    tree(tmp_path / "new", "6.1.0-56-amd64")
    tree(tmp_path / "bare", "6.12.1-amd64", without="overlay")
    image(tmp_path / "vmlinuz-7.0", "7.0 (x)")
    assert kernel.find(places=(tmp_path,)).version == "6.1.0-56-amd64"


def test_why_no_kernel_can_be_booted(tmp_path: Path) -> None:
    image(tmp_path / "vmlinuz-7.0", "7.0 (x)")
    tree(tmp_path / "bare", "6.12.1-amd64", without="libcrc32c")
    with pytest.raises(CapabilityError) as caught:
        kernel.find(places=(tmp_path,))
    assert "no modules of 7.0" in caught.value.message
    assert "no module libcrc32c, which xfs needs" in caught.value.message
    assert "scripts/kernel" in caught.value.hint


def test_another_file_is_no_kernel(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"\x7fELF" + bytes(0x1000))
    with pytest.raises(ConfigError, match="not an x86 kernel"):
        kernel.find(tmp_path / "vmlinuz")
    with pytest.raises(ConfigError, match="No such file"):
        kernel.find(tmp_path / "absent")


def test_the_ram_disk_is_a_newc_archive(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"12345")
    entries = {
        "usr/bin/program": initrd.Entry(source=tmp_path / "program", mode=0o755),
        "bin/sh": initrd.Entry(link="busybox"),
        "init": initrd.Entry(body=b"#!/bin/sh\n", mode=0o755),
    }
    size = initrd.write(tmp_path / "a.cpio", entries, folders=("run/deep",))
    raw = (tmp_path / "a.cpio").read_bytes()
    assert len(raw) == size
    assert listed(raw) == {
        "bin": (0o40755, b""), "dev": (0o40755, b""), "run": (0o40755, b""), "run/deep": (0o40755, b""), "usr": (0o40755, b""),
        "usr/bin": (0o40755, b""), "dev/console": (0o20600, b""), "bin/sh": (0o120777, b"busybox"),
        "init": (0o100755, b"#!/bin/sh\n"), "usr/bin/program": (0o100755, b"12345"),
    }  # fmt: skip


def listed(raw: bytes) -> dict[str, tuple[int, bytes]]:
    """Names, modes and bodies, read by the format's own document: 6 bytes of magic, 13 fields of 8 hex digits."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert raw[at : at + 6] == b"070701"
        fields = [int(raw[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = raw[at + 110 : at + 110 + fields[11] - 1].decode()
        body = -(-(at + 110 + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            return found
        assert name not in found
        assert not name.rpartition("/")[0] or name.rpartition("/")[0] in found  # a parent comes first
        found[name] = (fields[1], raw[body : body + fields[6]])
        at = -(-(body + fields[6]) // 4) * 4


@pytest.mark.parametrize("selinux_", [None, selinux.CONTEXTS])
@pytest.mark.parametrize("name", ["bottlerocket", "al2023-volume"])
def test_the_first_process_is_a_shell_script(tmp_path: Path, name: str, selinux_: selinux.Contexts | None) -> None:
    script = init(name, selinux_)
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)
    assert ("enforce" in script) is bool(selinux_)
    wanted = "PARTLABEL=BOTTLEROCKET-DATA" if name == "bottlerocket" else "LABEL=BUILDER-DATA"
    assert f"find_volume {wanted})" in script


def test_words_of_a_command_arrive_as_they_are() -> None:
    calls = [line for line in init("bottlerocket").splitlines() if line.startswith("start ")]
    shell = 'start() { printf "%s\\0" "$@"; printf "\\n\\0"; }\n' + "\n".join(calls)
    said = subprocess.run(["sh", "-c", shell], capture_output=True, check=True).stdout.decode().split("\0")
    expected = [w for n, c in enumerate(COMMANDS) for w in (str(n), c.reference, *c.argv, "\n")]
    assert said[:-1] == expected


def test_the_scripts_beside_it_are_shell_scripts() -> None:
    wrapper = render.text("node/vm/runc.sh.j2", selinux=selinux.CONTEXTS, trees=selinux.trees())
    assert "container_t:s0:c1,c2" in wrapper
    for script in (wrapper, (resources.folder("templates") / "node" / "vm" / "probe.sh").read_text()):
        subprocess.run(["sh", "-n"], input=script.encode(), check=True)


def init(name: str, contexts: selinux.Contexts | None = None) -> str:
    return render.text(
        "node/vm/init.sh.j2", volume=volumes.volume_of(targets.target(name)), commands=COMMANDS,
        models=targets.MODELS, trees=selinux.trees(), run_s=120, selinux=contexts,
    )  # fmt: skip


def test_a_disk_without_containerd_is_not_booted() -> None:
    with pytest.raises(ConfigError, match="gke-secondary disk is not started"):
        volumes.volume_of(targets.target("gke-secondary"))
    with pytest.raises(ConfigError, match="policy is for bottlerocket disks, not raw"):
        selinux.check(targets.target("raw"), 1)
    with pytest.raises(ConfigError, match="no image to start"):
        selinux.check(targets.target("bottlerocket"), 0)


def text(said: str) -> str:
    return base64.b64encode(said.encode()).decode()


IS_PINNED = ",io.cri-containerd.pinned=pinned"
PINNED = "io.cri-containerd.image=managed,io.cri-containerd.pinned=pinned"
LISTED = f"REF TYPE DIGEST SIZE PLATFORMS LABELS\n{COMMANDS[0].reference} t sha256:1 1.0 MiB linux/amd64 {PINNED}\n"
GOOD = [
    "mark kernel 3.50", "found /dev/vda1 xfs", "mark mount 5.00", "mark containerd 7.25", f"images {text(LISTED)}",
    f"run 0 0 7.30 11.30 10001:0 {text('10001 ')}", "mark container 11.40", "end",
]  # fmt: skip


def read(lines: list[str]) -> report.Report:
    return report.parse("\r\n".join([*lines, ""]), COMMANDS[:1])


def test_a_good_report_has_no_findings() -> None:
    seen = read(GOOD)
    assert report.findings(seen, COMMANDS[:1], run_s=120) == []
    (run,) = seen.runs
    assert (run.user, run.exit, round(run.seconds, 2), run.output) == ("10001:0", 0, 4.0, "10001 ")
    assert seen.seconds() == {"kernel": 3.5, "mount": 1.5, "containerd": 2.25, "container": pytest.approx(4.15)}
    assert (seen.device, seen.filesystem, seen.step) == ("/dev/vda1", "xfs", "power off")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("images", f"images {text(LISTED.replace(IS_PINNED, ''))}", "pinned is None, expected 'pinned'"),
        ("images", f"images {text(LISTED.replace('image=managed', 'image=x'))}", "image is 'x', expected 'managed'"),
        ("images", f"images {text(LISTED.splitlines()[0])}", "image registry.example.com/a@sha256:1: absent"),
        ("run", f"run 0 3 7 9 0:0 {text('no such model')}", "exit status 3\n    no such model"),
        ("run", f"run 0 137 7 130 0:0 {text('')}", "no end within 120 s"),
        ("run", "end", "start registry.example.com/a@sha256:1: no result"),
        ("run", "run 7 0 7 9 0:0 ", "the machine reported 'run 7 0 7 9 0:0 '"),
        ("found", f"fail mount {text('bad superblock')}", "mount: bad superblock"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(old: str, new: str, says: str) -> None:
    seen = read([new if line.split()[0] == old else line for line in GOOD])
    assert says in "\n".join(report.findings(seen, COMMANDS[:1], run_s=120))


def test_half_a_line_is_not_read() -> None:
    seen = report.parse("mark kernel 3.50\nmark mount 5", ())
    assert (seen.marks, seen.step) == ({"kernel": 3.5}, "mount")


@pytest.mark.parametrize(
    ("layers", "says"),
    [("read denied", ""), ("read written", "read written, expected read denied"), ("unreadable denied", "unreadable")],
)
def test_what_a_container_may_do_to_the_cache(layers: str, says: str) -> None:
    said = f"user 0\ncontext system_u:system_r:container_t:s0:c1,c2\nlayers {layers}\nmodels none\n"
    line = f"probe 0 {text(said)} {text('denied { append } tcontext=u:object_r:cache_t:s0')}"
    found = selinux.findings(read([*GOOD[:-1], line, "end"]).probe)
    assert says in "\n".join(found)
    assert bool(found) is bool(says)


def test_a_container_without_its_label_proves_nothing() -> None:
    good = {"user": "0", "denial": "x", "context": "a:b:container_t:s0", "layers": "read denied", "models": "none"}
    assert selinux.findings(good) == []
    assert "expected container_t" in selinux.findings({**good, "context": "system_u:system_r:system_t:s0"})[0]
    assert "expected root and a rule" in selinux.findings({**good, "user": "10001"})[0]
    assert "denied by no rule" in selinux.findings({key: value for key, value in good.items() if key != "denial"})[0]
    failed = read([*GOOD[:-1], f"probe 1 {text('exec format error')} {text('')}", "end"]).probe
    assert "did not start: exit status 1: exec format error" in selinux.findings(failed)[0]


def test_the_machine_has_no_network_and_does_not_write_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu.process, "need", lambda program, package="": Path("/usr/bin", program))
    disk = tmp_path / "a,b.img"
    machine = qemu.Machine(Path("k"), Path("i"), disk, "x", tmp_path / "c", tmp_path / "r", 512)
    argv = [str(word) for word in machine.argv()]
    assert argv[argv.index("-nic") + 1] == "none"
    assert argv[argv.index("-accel") + 1].startswith("tcg")
    assert argv[argv.index("-drive") + 1] == f"file={tmp_path}/a,,b.img,format=raw,if=virtio,snapshot=on"


def test_a_work_folder_that_another_may_write_to_is_not_used(tmp_path: Path) -> None:
    """What lies there says which files a clean-up removes."""
    folder, user = tmp_path / "builder-1000", os.getuid()
    assert boot.private(folder, user) == folder
    assert stat.filemode(folder.stat().st_mode) == "drwx------"
    assert boot.private(folder, user) == folder
    with pytest.raises(CapabilityError, match=f"of user {user}, expected drwx------ of user {user + 1}"):
        boot.private(folder, user + 1)
    folder.chmod(0o777)
    with pytest.raises(CapabilityError, match="drwxrwxrwx of user"):
        boot.private(folder, user)
    folder.chmod(0o700)
    other = tmp_path / "builder-1001"
    other.symlink_to(folder)
    with pytest.raises(CapabilityError, match="lrwxrwxrwx of user"):
        boot.private(other, user)
