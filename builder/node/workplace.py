"""Where one bake or check works, and how it leaves nothing behind.

    /run/builder/<16 hex of the disk's path>/     0700
        lock          flock while a process works here
        mnt/          the disk's file system
        state/ containerd.toml containerd.log containerd.sock
        record.json   {"disk", "files", "trees", "temporary", "pid"}: what is worked on, and what is to go with it

The name is derived from the path of the result, so two bakes of one file exclude each other, and what `kill -9` leaves
is found by the next bake or check of any file: no lock is held, so its processes, mounts, loop devices and half-made files are
nobody's, and `sweep` removes them. A disk that was there before, and is only opened, is no such file: neither the end nor a
sweep removes it, unless it was called temporary.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from builder import process
from builder.errors import BuilderError, CapabilityError, ConfigError

RUN = Path("/run/builder")  # short: a socket's path may have at most 107 bytes

# What a bake or a check starts, and what outlives it when it is killed; env and setpriv become containerd.
_OURS = ("containerd", "ctr", "setpriv", "env", "mke2fs", "mkfs.xfs", "cp", "skopeo", "fstrim", "sync", "pigz")
_ESCAPED = re.compile(rb"\\([0-7]{3})")  # how mountinfo writes a space, and what else would cut its line; proc(5)
_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RUNC_STATE = Path("/run/containerd/runc/k8s.io")  # fixed by containerd's runc shim, one folder per namespace


@dataclass(frozen=True, slots=True)
class Workplace:
    """folder: private to one bake. disk: the file being made."""

    folder: Path
    disk: Path

    @property
    def mount(self) -> Path:
        return self.folder / "mnt"

    @property
    def container(self) -> str:
        """Name of the only container that is started here."""
        return f"builder-{self.folder.name}"


@contextmanager
def workplace(disk: Path, *, tree: Path | None = None, files: tuple[Path, ...] = (), temporary: bool = False,
              run: Path = RUN) -> Iterator[Workplace]:  # fmt: skip
    """A locked, empty folder for work on `disk`, removed at the end with every mount, process and device under it.

    tree: a folder, and files: half-made files, that go with it, whatever happens. temporary: so does the disk itself: one
    that is being made and will have been renamed, or a copy.
    Raises CapabilityError if another process works on the same disk, or the folder cannot be made; ConfigError if `tree` is
    there and no killed process had made it: it is somebody's.
    """
    folder = run / hashlib.sha256(str(disk.resolve()).encode()).hexdigest()[:16]
    lock = _wait_lock(folder)
    if lock is None:
        raise CapabilityError(f"{disk}: another process works on it", hint="wait for it, or choose another file")
    try:
        _clean(folder)
        if tree and os.path.lexists(tree):
            raise ConfigError(f"{tree}: already there", hint="remove it: an earlier run left it, or it is yours")
        record = {
            "disk": str(disk.resolve()),
            "files": [str(path.resolve()) for path in files],
            "trees": [str(tree.resolve())] if tree else [],
            "temporary": temporary,
            "pid": os.getpid(),
        }
        (folder / "record.json").write_text(json.dumps(record))
        (folder / "mnt").mkdir()
        yield Workplace(folder, disk)
    finally:
        _clean(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def scratch(folder: Path, *, run: Path = RUN) -> Iterator[Path]:
    """A new, private folder, removed at the end; by the next bake or check if this process is killed."""
    with workplace(folder, tree=folder, run=run):
        folder.mkdir(mode=0o700)
        yield folder


def sweep(run: Path = RUN) -> list[str]:
    """Clean up after processes that were killed. Returns one sentence per thing removed; working neighbours are left alone."""
    removed: list[str] = []
    for folder in sorted(run.glob("*/")):
        lock = _lock(folder)
        if lock is None:  # its owner works, or has just finished
            continue
        try:
            removed += _clean(folder)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
    return removed


@contextmanager
def terminable() -> Iterator[None]:
    """Within, Ctrl-C, SIGTERM and SIGHUP end the work once, so that clean-up is not interrupted; what is ignored stays so.

    Ctrl-C by KeyboardInterrupt, the others by SystemExit with the status that shells give them, 128 + the signal's number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _Stop()
    if any(isinstance(signal.getsignal(number), _Stop) for number in _STOP):
        yield  # within another: once for all, or the clean-up of the outer one could be interrupted
        return
    before = {number: signal.getsignal(number) for number in _STOP if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop:
    def __init__(self) -> None:
        self._fired = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._fired:
            self._fired = True
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def mounts_under(folder: Path) -> list[Path]:
    """Mount points at or below `folder`, the innermost first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = Path(os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4])))
        if point == folder or folder in point.parents:
            found.append(point)
    return found[::-1]


def loops_of(disk: Path) -> list[str]:
    """Loop devices attached to the file `disk`, or to one of that name that has been deleted: it keeps its space until then.

    The mark of the deleted one is the kernel's, in sysfs (fs/dcache.c, d_path).
    """
    gone, found = os.fsencode(disk) + b" (deleted)", set[str]()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # detached meanwhile
            found |= {f"/dev/{path.parts[3]}"} if path.read_bytes().rstrip(b"\n") == gone else set()
    if disk.exists() and process.which("losetup") is not None:
        done = process.run([process.need("losetup"), "--noheadings", "--output", "NAME", "--associated", disk])
        found.update(done.stdout.decode().split())
    return sorted(found)


def _lock(folder: Path) -> int | None:
    """The folder's lock, held until the descriptor is closed; None if another has it or the folder is gone."""
    path = folder / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(fd).st_ino:  # else its last owner removed it while it was being opened
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def _wait_lock(folder: Path) -> int | None:
    """As `_lock`, on a folder made if need be. Tries for a second: a sweep holds the lock of what it removes."""
    for _ in range(20):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise CapabilityError(f"{folder}: {exc.strerror}", hint="run as root") from exc
        lock = _lock(folder)
        if lock is not None:
            return lock
        time.sleep(0.05)
    return None


def _clean(folder: Path) -> list[str]:
    """Undo what the record and the folder's own path point to. Returns one sentence per thing undone."""
    record = _record(folder)
    disk, trees = record.disk, record.trees
    removed = []
    ours = _processes(folder, record)
    _end_container(folder)  # first: what runs as process 1 of a container takes no notice of SIGTERM
    for pid in ours:
        _end(pid)
        removed.append(f"process {pid}")
    for point in [p for root in (folder, *trees) for p in mounts_under(root)]:
        process.run([process.need("umount"), point], check=False)
        removed.append(f"mount {point}")
    for device in loops_of(disk) if disk else []:
        process.run([process.need("losetup"), "--detach", device], check=False)
        removed.append(f"loop device {device}")
    if left := [p for root in (folder, *trees) for p in mounts_under(root)]:
        raise BuilderError(f"{left[0]}: cannot be unmounted", hint=f"umount {left[0]}")
    for tree in trees:
        if tree.exists():
            shutil.rmtree(tree, ignore_errors=True)
            removed.append(f"folder {tree}")
    for path in record.removable:
        if path.is_file():
            path.unlink()
            removed.append(f"file {path}")
    for name in ("mnt", "state"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return removed


@dataclass(frozen=True, slots=True)
class _Record:
    """What record.json says. removable: files that nobody misses."""

    disk: Path | None = None
    trees: tuple[Path, ...] = ()
    removable: tuple[Path, ...] = ()


def _record(folder: Path) -> _Record:
    try:
        raw = json.loads((folder / "record.json").read_text())
        disk = Path(raw["disk"])
        mine = (disk,) if raw["temporary"] is True else ()
        return _Record(disk, tuple(map(Path, raw["trees"])), (*mine, *map(Path, raw["files"])))
    except (OSError, ValueError, KeyError, TypeError):  # killed before it was written: nothing else was begun
        return _Record()


def _processes(folder: Path, record: _Record) -> list[int]:
    """Programs that were started here, as far as their command line names this folder or what is being made, and their
    children: a container does not end with its shim. A pager or an editor that has the log open is left alone.
    """
    marks = [f"{folder}/".encode(), *(os.fsencode(path) for path in (*record.trees, *record.removable))]
    found, parents = [], {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        named = any(mark in word for word in words[1:] for mark in marks)
        if named and Path(os.fsdecode(words[0])).name.startswith(_OURS):
            found.append(int(entry.name))
    return [pid for pid, parent in parents.items() if parent in found and pid not in found] + found


def _end_container(folder: Path) -> None:
    """Forget the containers of a killed check: their cgroups and runc's state, which no mount or process names. runc keeps
    the folder of each container's bundle, which lies in ours."""
    for state in RUNC_STATE.glob("*/state.json"):
        try:
            mine = f"{folder}/" in state.read_text(errors="replace")
        except OSError:  # it has just ended
            continue
        if mine and process.which("runc"):
            process.run([process.need("runc"), "--root", RUNC_STATE, "delete", "--force", state.parent.name], check=False)


def _end(pid: int) -> None:
    for number, wait_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 60.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and _runs(pid):
            time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether the process has not ended; a zombie, whose parent does not ask for its status, has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
