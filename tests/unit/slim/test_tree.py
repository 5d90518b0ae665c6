"""Files and folders: what is found, what is replaced and how, and what stays as it is."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builder.errors import CapabilityError, ConfigError, IntegrityError
from builder.slim import swap, tree
from builder.slim.chips import Chip
from builder.slim.report import Report
from tests import fatbins

H100 = (Chip(9, 0),)
OURS = {"*.so*": "torch"}  # a package that may be modified
CODE: list[fatbins.Container] = [
    [("sm_80", fatbins.cubin("sm_80", 40_000)), ("sm_90", fatbins.cubin("sm_90", 30_000))],
    [("sm_75", fatbins.cubin("sm_75", 50_000)), ("compute_80", fatbins.ptx("compute_80"))],
]
KEPT: list[fatbins.Container] = [CODE[0][1:], CODE[1][1:]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fatbins.make(tmp_path_factory.mktemp("made"), "made.so", CODE)


@pytest.fixture
def site(tmp_path: Path, made: Path) -> Path:
    """Three libraries in two folders."""
    for name in ("a.so", "b.so", "deep/c.so"):
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, tmp_path / "site" / name)
    return tmp_path / "site"


def slim(*paths: Path, gpus: tuple[Chip, ...] = H100, workers: int = 1, **more: object) -> Report:
    return tree.slim(paths, gpus, "oss", packages=OURS, workers=workers, **more)  # type: ignore[arg-type]


def picture(folder: Path) -> dict[str, tuple[object, ...]]:
    """All that a file has, by path."""
    out: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        s = path.lstat()
        body = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        out[str(path.relative_to(folder))] = (s.st_ino, s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns, s.st_nlink, body)
    return out


def statuses(report: Report) -> dict[str, str]:
    return {one.path.rpartition("/")[2]: one.status for one in report.files}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_library_of_a_folder_loses_the_other_chips_and_still_loads(site: Path, made: Path, workers: int) -> None:
    report = slim(site, workers=workers)
    assert [one.path for one in report.files] == [str(site / name) for name in ("a.so", "b.so", "deep/c.so")]
    assert report.failure() is None
    for path in (site / "a.so", site / "deep/c.so"):
        assert path.stat().st_size < made.stat().st_size - 80_000
        assert fatbins.pointers(path) == [fatbins.container(one) for one in KEPT]  # type: ignore[arg-type]
    assert set(report.chips) == {"sm_75", "sm_80", "sm_90", "compute_80"}
    assert report.chips["sm_80"][1] == report.chips["sm_75"][1] == 0
    assert report.chips["sm_90"][0] == report.chips["sm_90"][1] > 3 * 30_000
    assert report.packed[1] < report.packed[0]
    assert report.jit == {one.path: ("compute_80",) for one in report.files}


def test_run_twice_the_second_changes_nothing(site: Path) -> None:
    slim(site)
    first = picture(site)
    report = slim(site)
    assert picture(site) == first
    assert set(statuses(report).values()) == {"nothing-to-drop"}
    assert report.failure() is None


def test_a_dry_run_says_the_same_and_writes_nothing(site: Path) -> None:
    before = picture(site)
    said = slim(site, dry_run=True).to_json()
    assert picture(site) == before
    done = slim(site).to_json()
    assert [one["after"] for one in said["files"]] == [one["after"] for one in done["files"]]
    assert [one["size_after"] for one in said["files"]] == [one["size_after"] for one in done["files"]]


def test_owner_mode_attributes_and_times_stay(site: Path) -> None:
    path = site / "a.so"
    path.chmod(0o4751)
    if os.geteuid() == 0:
        os.chown(path, 65534, 12345)
        path.chmod(0o4751)
    os.setxattr(path, "user.note", b"kept\0")
    os.utime(path, ns=(10**18 + 1, 10**18 + 2))
    old = path.stat()
    slim(path)
    new = path.stat()
    assert new.st_ino != old.st_ino
    assert (new.st_mode, new.st_uid, new.st_gid, new.st_mtime_ns) == (old.st_mode, old.st_uid, old.st_gid, old.st_mtime_ns)
    assert os.getxattr(path, "user.note") == b"kept\0"


def acl(*entries: tuple[int, int, int]) -> bytes:
    """As Linux stores one: version 2, then tag, permissions and id of each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one) for one in entries)


def test_what_the_folder_gives_new_files_is_not_taken_on(site: Path) -> None:
    nobody = 0xFFFFFFFF
    default = acl((1, 7, nobody), (2, 7, 12345), (4, 5, nobody), (16, 7, nobody), (32, 5, nobody))
    os.setxattr(site, "system.posix_acl_default", default)
    (site / "new").touch()
    assert "system.posix_acl_access" in os.listxattr(site / "new")
    before = (site / "a.so").stat()
    assert os.listxattr(site / "a.so") == []
    assert slim(site / "a.so").files[0].status == "pruned"
    assert os.listxattr(site / "a.so") == []
    assert (site / "a.so").stat().st_mode == before.st_mode


def test_hard_links_stay_links_and_are_pruned_once(site: Path) -> None:
    os.link(site / "a.so", site / "deep/same.so")
    report = slim(site)
    assert (site / "a.so").stat().st_ino == (site / "deep/same.so").stat().st_ino
    assert (site / "a.so").stat().st_nlink == 2
    assert [len(one.links) for one in report.files] == [1, 0, 0]
    assert not list(site.rglob(".*"))


def test_a_file_with_a_name_elsewhere_is_left(site: Path, tmp_path: Path) -> None:
    os.link(site / "a.so", tmp_path / "elsewhere.so")
    before = picture(site)["a.so"]
    report = slim(site)
    assert picture(site)["a.so"] == before
    assert statuses(report) == {"a.so": "left", "b.so": "pruned", "c.so": "pruned"}
    assert report.files[0].reason == "1 more of its names lie elsewhere; name their folders too, or they would stay whole"
    assert slim(site, dry_run=True).files[0].status == "left"
    assert slim(site, tmp_path / "elsewhere.so").files[0].status == "pruned"


def test_links_are_not_followed_and_special_files_passed_over(site: Path, tmp_path: Path, made: Path) -> None:
    outside = Path(shutil.copy(made, tmp_path / "outside.so"))
    (site / "loop").symlink_to(site)
    (site / "self").symlink_to("self")
    (site / "link.so").symlink_to(outside)
    os.mkfifo(site / "pipe.so")
    (site / "text.so").write_text("not a library\n" * 1000)
    (site / "small.so").write_bytes(b"\x7fELF" + bytes(100))
    before = picture(tmp_path)
    report = slim(site)
    assert len(report.files) == 3
    assert {name for name, one in picture(tmp_path).items() if one != before[name]} == {
        "site", "site/a.so", "site/b.so", "site/deep", "site/deep/c.so"
    }  # fmt: skip


def test_a_link_that_is_named_is_followed(site: Path, tmp_path: Path) -> None:
    (tmp_path / "name").symlink_to("site/a.so")
    assert slim(tmp_path / "name").files[0].path == str(tmp_path / "name")
    assert (tmp_path / "name").is_symlink()
    assert fatbins.pointers(site / "a.so") == [fatbins.container(one) for one in KEPT]  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["gone", "self", "pipe"])
def test_a_path_that_is_nothing_to_prune_stops_it_before_anything_is_done(site: Path, what: str) -> None:
    (site / "self").symlink_to("self")
    os.mkfifo(site / "pipe")
    before = picture(site)
    with pytest.raises(ConfigError, match=what):
        slim(site, site / what)
    assert picture(site) == before


def damaged(made: Path, how: str) -> bytes:
    whole = bytearray(made.read_bytes())
    if how == "text":
        return b"#!/bin/sh\n" * 1000
    if how == "truncated":
        return bytes(whole[: len(whole) // 2])
    if how == "32-bit":
        whole[4] = 1
    if how == "big-endian":
        whole[5] = 2
    if how == "container":
        at = whole.index(fatbins.MAGIC.to_bytes(4, "little"))
        whole[at + 8 : at + 16] = (1 << 40).to_bytes(8, "little")
    if how == "version":
        whole[whole.index(fatbins.MAGIC.to_bytes(4, "little")) + 4] = 9
    return bytes(whole)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("text", ConfigError), ("32-bit", ConfigError), ("big-endian", ConfigError), ("truncated", IntegrityError),
        ("container", IntegrityError), ("version", IntegrityError),
    ],
)  # fmt: skip
def test_a_named_file_that_cannot_be_pruned_is_an_error_after_the_others(
    site: Path, made: Path, how: str, error: type[Exception]
) -> None:
    bad = site / "bad.so"
    bad.write_bytes(damaged(made, how))
    before = picture(site)["bad.so"]
    report = slim(site, bad)
    failure = report.failure()
    assert isinstance(failure, error)
    assert str(bad) in failure.message
    assert picture(site)["bad.so"] == before
    assert statuses(report) == {"a.so": "pruned", "b.so": "pruned", "bad.so": "left", "c.so": "pruned"}
    assert slim(site).failure() is None  # found on the way, it is only reported
    assert picture(site)["bad.so"] == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_name_that_cannot_be_longer_is_that_files_fault_only(site: Path, made: Path, workers: int) -> None:
    long = site / ("0" * 247 + ".so")
    with long.open("wb") as file:  # the largest, and so the first
        file.write(made.read_bytes() + bytes(100_000))
    before = picture(site)[long.name]
    report = slim(site, workers=workers)
    assert statuses(report) == {long.name: "failed", "a.so": "pruned", "b.so": "pruned", "c.so": "pruned"}
    failure = report.failure()
    assert isinstance(failure, CapabilityError)
    assert "File name too long" in failure.message
    assert "15 bytes longer" in failure.hint
    assert picture(site)[long.name] == before


@pytest.fixture
def somebody(made: Path) -> Iterator[Path]:
    """A folder with three libraries, for a user that is not root."""
    with tempfile.TemporaryDirectory() as name:
        for file in ("a.so", "b.so", "c.so"):
            shutil.copy(made, Path(name, file))
        if os.geteuid():
            yield Path(name)
            return
        for path in (name, *Path(name).iterdir()):
            os.chown(path, 65534, -1)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("dry_run", [True, False])
def test_one_file_that_cannot_be_read_does_not_end_the_run(somebody: Path, dry_run: bool) -> None:
    with (somebody / "a.so").open("ab") as file:
        file.write(bytes(100_000))  # the largest, and so the first
    (somebody / "a.so").chmod(0)
    report = slim(somebody, dry_run=dry_run)
    assert statuses(report) == {"a.so": "failed", "b.so": "pruned", "c.so": "pruned"}
    failure = report.failure()
    assert isinstance(failure, CapabilityError)
    assert failure.message == f"{somebody / 'a.so'}: cannot be read or replaced: Permission denied"
    assert sorted(path.name for path in somebody.iterdir()) == ["a.so", "b.so", "c.so"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_every_file_would_meet_ends_the_run(site: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full disk itself is in tests/integration/slim."""
    before = picture(site)

    def refuse(source: Path, target: Path | None, gpus: tuple[Chip, ...]) -> object:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(tree, "prune", refuse)
    report = slim(site)
    assert sorted(statuses(report).values()) == ["failed", "left", "left"]
    assert isinstance(report.failure(), CapabilityError)
    assert picture(site) == before


def test_a_library_without_code_for_the_chips_is_left_whole(site: Path) -> None:
    before = picture(site)
    report = slim(site, gpus=(Chip(7, 0),))
    assert set(statuses(report).values()) == {"left"}
    assert all("none that 7.0 could use" in one.reason for one in report.files)
    assert report.without == {"7.0": tuple(str(site / name) for name in ("a.so", "b.so", "deep/c.so"))}
    assert report.failure() is None
    failure = slim(site / "a.so", gpus=(Chip(7, 0),)).failure()
    assert isinstance(failure, ConfigError)
    assert "--gpu" in failure.hint
    assert picture(site) == before


def test_what_the_profile_leaves_is_said_with_what_it_would_save(tmp_path: Path, made: Path) -> None:
    path = Path(shutil.copy(made, tmp_path / "libcublasLt.so.13"))
    before = picture(tmp_path)
    report = tree.slim([path], H100, "oss")
    assert picture(tmp_path) == before
    (found,) = report.files
    assert (found.status, found.size_after) == ("licence", found.size_before)
    assert found.to_json()["would"]["size_after"] < found.size_before
    assert found.reason.startswith("profile oss: NVIDIA CUDA EULA")
    assert tree.slim([path], H100, "all").files[0].status == "pruned"
    assert not tree.slim([path], H100, "all").redistributable


def test_the_package_of_a_file_is_the_one_that_its_record_names(tmp_path: Path, made: Path) -> None:
    site = tmp_path / "lib/site-packages"
    for name, licence in (("free", "MIT"), ("closed", "LicenseRef-NVIDIA-Proprietary")):
        info = site / f"{name}_Part-1.0.dist-info"
        info.mkdir(parents=True)
        (site / name).mkdir()
        shutil.copy(made, site / name / "x.so")
        (info / "METADATA").write_text(f"Name: {name}\nLicense-Expression: {licence}\n\n")
        (info / "RECORD").write_text(f'{name}/x.so,sha256=x,1\n"{name}/../{name}/y,z.so",,\n')
    shutil.copy(made, site / "stray.so")
    report = tree.slim([tmp_path], H100, "oss")
    assert [(one.decision.package, one.status) for one in report.files] == [
        ("closed-part", "licence"), ("free-part", "pruned"), ("", "licence")
    ]  # fmt: skip


HOLD = """
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1]); lib.container.restype = ctypes.c_void_p
print("loaded", flush=True); sys.stdin.readline()
print(sum(len(ctypes.string_at(lib.container(i), 16)) for i in range(lib.containers())), lib.after(), flush=True)
import hashlib
at = lib.container(0); size = int.from_bytes(ctypes.string_at(at, 16)[8:], "little")
print(hashlib.sha256(ctypes.string_at(at, 16 + size)).hexdigest(), flush=True)
"""


def test_a_process_that_has_the_library_loaded_keeps_what_it_loaded(site: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, site / "a.so"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "loaded\n"
        slim(site / "a.so")
        said, _ = held.communicate("\n")
    whole = hashlib.sha256(fatbins.container(CODE[0])).hexdigest()  # type: ignore[arg-type]
    assert said.split() == ["32", str(fatbins.AFTER), whole]
    assert fatbins.pointers(site / "a.so") == [fatbins.container(one) for one in KEPT]  # type: ignore[arg-type]


RUN = """
import sys
from pathlib import Path
from builder.slim import tree
from builder.slim.chips import Chip

def done(path, size, total):
    if path:
        print(path, flush=True)

if __name__ == "__main__":
    tree.slim([Path(sys.argv[1])], (Chip(9, 0),), "oss", packages={"*.so*": "torch"}, workers=int(sys.argv[2]), progress=done)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_point_every_file_is_the_old_or_the_new_one(tmp_path: Path, made: Path, workers: int) -> None:
    """Killed when some files are done, and a little later each time, so that it falls into another step of the next one."""
    reference = Path(shutil.copy(made, tmp_path / "reference.so"))
    slim(reference)
    program, folder = tmp_path / "run.py", tmp_path / "site"
    program.write_text(RUN)
    folder.mkdir()
    for after, delay in ((1, 0.0), (1, 0.001), (2, 0.002), (4, 0.003), (7, 0.0045), (9, 0.006)):
        for old in folder.iterdir():
            old.unlink()
        for i in range(24):
            shutil.copy(made, folder / f"{i}.so")
            os.link(folder / f"{i}.so", folder / f"{i}-same.so")
        names = sorted(path.name for path in folder.iterdir())
        command = [sys.executable, program, folder, str(workers)]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as child:
            assert child.stdout is not None
            for _ in range(after):
                child.stdout.readline()
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        _alone(folder)
        found = [(folder / name).read_bytes() for name in names]
        assert set(found) == {made.read_bytes(), reference.read_bytes()}
        slim(folder)
        assert sorted(path.name for path in folder.iterdir()) == names
        assert {(folder / name).read_bytes() for name in names} == {reference.read_bytes()}
        assert all((folder / f"{i}.so").stat().st_ino == (folder / f"{i}-same.so").stat().st_ino for i in range(24))


def _alone(folder: Path) -> None:
    """Wait until no process of the killed run works on the folder: their parent's death ends them."""
    for _ in range(200):
        try:
            for path in folder.glob("*.so"):
                with swap.locked(path):
                    pass
        except CapabilityError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError("a process of the killed run still works")


def test_interrupted_the_files_in_work_are_finished_and_nothing_stays_behind(tmp_path: Path, made: Path) -> None:
    """Ctrl-C on a terminal goes to every process of the run."""
    program, folder = tmp_path / "run.py", tmp_path / "site"
    # It stops at the first report, or a quick machine has done every file before the signal comes; and it takes the signal,
    # which a shell's background jobs ignore.
    stops = RUN.replace("print(path, flush=True)", "print(path, flush=True), sys.stdin.readline()")
    program.write_text(f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{stops}")
    folder.mkdir()
    for i in range(40):
        shutil.copy(made, folder / f"{i}.so")
    command = [sys.executable, program, folder, "2"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=True,
        text=True,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        os.killpg(child.pid, signal.SIGINT)
        _, said = child.communicate()
    assert child.returncode
    assert said.count("Traceback") == 1  # the program's own, which has no better word for Ctrl-C
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{i}.so" for i in range(40))
    assert {path.stat().st_size for path in folder.iterdir()} != {made.stat().st_size}
    _alone(folder)


def test_a_second_run_keeps_away_from_a_file_in_work(site: Path) -> None:
    before = picture(site)
    with swap.locked(site / "a.so"):
        failure = slim(site / "a.so").failure()
    assert isinstance(failure, CapabilityError)
    assert "another run" in failure.message
    assert picture(site) == before


def test_a_file_system_that_locks_no_file_open_for_reading_is_one_without_locks(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does; there is none here."""

    def flock(descriptor: int, operation: int) -> None:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert operation == fcntl.LOCK_EX | fcntl.LOCK_NB
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert slim(site / "a.so").files[0].status == "pruned"


def test_a_file_that_changed_meanwhile_is_not_replaced(site: Path) -> None:
    with swap.locked(site / "a.so") as old:
        new = swap.beside(site / "a.so")
        new.write_bytes(b"new")
        (site / "a.so").write_bytes(b"installed meanwhile")
        with pytest.raises(CapabilityError, match="changed while it was read"):
            swap.put(new, (site / "a.so",), old)
    assert (site / "a.so").read_bytes() == b"installed meanwhile"


def test_leftovers_go_and_a_half_done_rename_is_finished(site: Path) -> None:
    stale, other = site / ".a.so.slim-0123abcd", site / ".gone.so.slim-0123abcd"
    stale.write_bytes(b"half")
    other.write_bytes(b"half")
    keep = site / ".a.so.slim-notours"
    keep.write_bytes(b"mine")
    # b.so was renamed already, its other name not yet
    new = site / ".two.so.slim-89abcdef"
    shutil.copy2(site / "b.so", site / "two.so")
    shutil.copystat(site / "two.so", site / "b.so")
    os.link(site / "b.so", new)
    slim(site)
    assert (site / "two.so").stat().st_ino == (site / "b.so").stat().st_ino
    assert sorted(path.name for path in site.glob(".*")) == [keep.name]


def test_the_report_is_one_json_object_with_every_figure(site: Path) -> None:
    data = json.loads(json.dumps(slim(site).to_json()))
    assert data["gpus"] == ["9.0"]
    assert data["bytes_after"] < data["bytes_before"]
    (first, *_) = data["files"]
    assert first["package"] == "torch"
    assert first["decision"] == "modify"
    payload = fatbins.cubin("sm_90", 30_000)
    assert first["kept"] == [["sm_90", hashlib.sha256(payload).hexdigest()]]


def test_a_worker_that_is_killed_ends_the_run_and_leaves_nothing_behind(site: Path, tmp_path: Path) -> None:
    """As the kernel does for want of memory; here by a proof that kills its parent, while the pruned copy lies there."""
    program = tmp_path / "cuobjdump"
    program.write_text(
        '#!/bin/sh\ncase "$3" in */.b.so.slim-*) kill -9 $PPID; exit 9;; esac\n'
        'case "$2" in --list-elf) echo "ELF file 1: a.1.sm_90.cubin";; *) echo "PTX file 1: a.1.sm_80.ptx";; esac\n'
    )
    program.chmod(0o755)
    before = picture(site)
    report = slim(site, workers=2, cuobjdump=program)
    failure = report.failure()
    assert isinstance(failure, CapabilityError)
    assert "a process was ended" in failure.message
    after = picture(site)
    assert after.keys() == before.keys()
    assert after["b.so"] == before["b.so"]
    assert slim(site).failure() is None


def test_a_folder_that_cannot_be_listed_is_named(site: Path) -> None:
    def walk(top: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
        onerror(PermissionError(13, "Permission denied", str(site / "deep")))
        yield from ()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "walk", walk)
        with pytest.raises(CapabilityError, match="deep: cannot be listed: Permission denied"):
            slim(site)
