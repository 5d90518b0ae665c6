"""Whole programs, measured from outside: wall seconds, CPU seconds of the program and of the server, peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from builder import process

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_S = 0.02
_TOUCH = "import mmap, sys; mmap.mmap(-1, int(sys.argv[1]), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)"


class Failed(Exception):
    """A measured program ended with an error."""


@dataclass(frozen=True)
class Command:
    """A program to measure. target: the folder whose file system is synced within the timed part."""

    argv: Sequence[str]
    env: Mapping[str, str]
    target: Path | None = None


@dataclass(frozen=True)
class Run:
    """One run. wall: seconds.  cpu: seconds of the program and its children.  server: seconds of the server meanwhile.

    rss: bytes; the high-water marks of the processes that lived at the same time, summed.  said: what it printed.
    """

    wall: float
    cpu: float
    server: float
    rss: int
    said: str = ""


def run(command: Command, servers: Iterable[int] = ()) -> Run:
    """Run it to its end. servers: process ids whose CPU seconds are taken beside. Raises Failed with its last words."""
    watched = list(servers)
    before = sum(cpu_seconds(pid) for pid in watched)
    start = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # not pipes: nobody would read them meanwhile
        child = subprocess.Popen(command.argv, env=dict(command.env), stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        with _peak(child.pid) as peak:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if command.target is not None and not child.returncode:
                syncfs(command.target)
            wall = time.monotonic() - start
        said, wrong = _text(out), _text(err)
    if child.returncode:
        raise Failed(f"{Path(command.argv[0]).name}: exit {child.returncode}: {' '.join((said + wrong).split())[-400:]}")
    cpu = usage.ru_utime + usage.ru_stime
    server = sum(cpu_seconds(pid) for pid in watched) - before
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss of a child is at least ours, because the child shares our memory between vfork and exec.
    largest = usage.ru_maxrss if usage.ru_maxrss > own else 0
    return Run(wall, cpu, server, max(peak[0], largest * 1024), said)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@contextlib.contextmanager
def _peak(pid: int) -> Iterator[list[int]]:
    """Samples, while the block runs, the sum of the high-water marks of `pid` and its living descendants, in bytes."""
    peak, stop = [0], threading.Event()

    def sample() -> None:
        while not stop.wait(_SAMPLE_S):
            peak[0] = max(peak[0], sum(_high_water(p) for p in tree(pid)))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def tree(pid: int) -> list[int]:
    """pid and its living descendants."""
    found, at = [pid], 0
    while at < len(found):
        with contextlib.suppress(OSError):  # it may end meanwhile
            for thread in Path(f"/proc/{found[at]}/task").iterdir():
                found += [int(p) for p in (thread / "children").read_text().split()]
        at += 1
    return found


def _high_water(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, all threads; 0 if it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


def child(*words: str) -> int:
    """The id of this program's child whose command line holds all `words`. Raises LookupError."""
    for pid in tree(os.getpid())[1:]:
        with contextlib.suppress(OSError):
            said = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if all(word in said for word in words):
                return pid
    raise LookupError(f"no child with {words}")


def syncfs(folder: Path) -> None:
    """Wait until everything written to the file system of `folder` is on the disk (syncfs(2))."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "syncfs", str(folder))
    finally:
        os.close(descriptor)


def touch_memory(size: int) -> None:
    """Make sure that `size` bytes of free memory are this machine's, or what is left of it by half.

    A virtual machine may hand free pages back to its host (free page reporting), and then pays for each one when it is used
    again: seen here, 2 to 6 s per GB, for whichever tool came next.
    """
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    subprocess.run([sys.executable, "-c", _TOUCH, str(min(size, available // 2))], check=True)


def make_cold(folders: Sequence[Path]) -> float:
    """Drop the files below `folders` from this machine's page cache. Returns the share that is still in it.

    A virtual machine's host may keep its own copy: cold here means that this kernel has to ask the block device.
    """
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # a dirty page is not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    if resident(files) > 0.01 and os.geteuid() == 0:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    return resident(files)


def make_warm(folders: Sequence[Path]) -> None:
    """Read the files below `folders` once."""
    buffer = bytearray(1 << 22)
    for path in (p for folder in folders for p in folder.rglob("*") if p.is_file()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def resident(files: Sequence[Path]) -> float:
    """The share of the files' bytes in the page cache, by fincore(1); nan where that is missing."""
    program = process.which("fincore")
    if program is None or not files:
        return float("nan")
    told = subprocess.run([program, "-b", "-n", "-o", "RES,SIZE", *map(str, files)], capture_output=True, text=True, check=True)
    rows = [line.split() for line in told.stdout.splitlines()]
    return sum(int(r[0]) for r in rows) / max(1, sum(int(r[1]) for r in rows))


def rounds(tools: Mapping[str, Callable[[], Run]], count: int, warm_up: int = 1) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """Every tool in turn, `count` times, after `warm_up` rounds that are not counted: a drift of the machine hits all.

    Returns the runs, and why a tool has none: one that fails is left out of the rounds after that.
    """
    found: dict[str, list[Run]] = {name: [] for name in tools}
    failed: dict[str, str] = {}
    for number in range(count + warm_up):
        for name in [n for n in tools if n not in failed]:
            try:
                one = tools[name]()
            except Failed as exc:
                failed[name] = str(exc)
                del found[name]
                continue
            if number >= warm_up:
                found[name].append(one)
    return found, failed


def median(runs: Sequence[Run], of: Callable[[Run], float]) -> float:
    return statistics.median(of(r) for r in runs)


def machine() -> str:
    """What this ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB, {platform.machine()}, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


def limit_files() -> None:
    """As many open files as the machine allows: some peers want thousands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
