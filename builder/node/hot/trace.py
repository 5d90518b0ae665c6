"""Reads of one block device as the kernel hands them out, in order: file data, file system metadata and read-ahead alike.

Uses the tracepoint block:block_bio_queue in an instance of its own under tracefs, so that other tracing is not disturbed.
Source: the kernel's Documentation/trace/ftrace.rst (instances), include/trace/events/block.h (fields; `dev` is the kernel's
number, major << 20 | minor; sectors are 512 bytes, counted from the device's own start).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.errors import BuilderError, CapabilityError

EVENT = "events/block/block_bio_queue"
PREFIX = "builder-"
SECTOR = 512
BUFFER_KIB = 16 << 10  # per processor; a start with 100,000 reads needs about 7 MiB
_LINE = re.compile(r"block_bio_queue: \d+,\d+ (\w+) (\d+) \+ (\d+)")
_LOST = re.compile(r"^(?:overrun|dropped events): (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Read:
    """One read of the device. start, size: bytes. flags: the kernel's; R read, A read-ahead, M metadata."""

    start: int
    size: int
    flags: str


@dataclass(frozen=True, slots=True)
class Tracer:
    """A running trace. `reads` may be asked for at any time."""

    folder: Path

    def stop(self) -> None:
        (self.folder / EVENT / "enable").write_text("0")

    def reads(self) -> list[Read]:
        """All reads so far, in order. Raises BuilderError if the kernel's buffer was too small for all of them."""
        lost = sum(int(n) for path in self.folder.glob("per_cpu/cpu*/stats") for n in _LOST.findall(path.read_text()))
        if lost:
            raise BuilderError(f"the kernel's trace buffer lost {lost} events", hint="trace a shorter start: --seconds")
        return parse((self.folder / "trace").read_text(errors="replace"))


def parse(text: str) -> list[Read]:
    """The reads in the text of a trace; writes, discards and flushes left out.

    >>> parse("mount-9 [000] ..... 1.5: block_bio_queue: 7,0 RA 2048 + 8 [mount]")
    [Read(start=1048576, size=4096, flags='RA')]
    """
    found = []
    for match in _LINE.finditer(text):
        flags, sector, count = match[1], int(match[2]), int(match[3])
        if flags.startswith("R") and count:
            found.append(Read(sector * SECTOR, count * SECTOR, flags))
    return found


@contextmanager
def traced(device: Path, tracefs: Path, name: str) -> Iterator[Tracer]:
    """Trace `device` from now on. tracefs: a folder to mount it on. name: of the instance, this process's alone.

    Raises CapabilityError where the kernel does not let this process trace.
    """
    number = device.stat().st_rdev
    dev = os.major(number) << 20 | os.minor(number)
    tracefs.mkdir(exist_ok=True)
    try:
        process.run([process.need("mount"), "-t", "tracefs", "none", tracefs])
    except BuilderError as exc:
        raise CapabilityError(f"tracefs cannot be mounted: {exc.message}", hint="--method page-cache needs none") from exc
    folder = tracefs / "instances" / f"{PREFIX}{name}"
    try:
        _sweep(tracefs / "instances")
        _begin(folder, dev)
        yield Tracer(folder)
    finally:
        with suppress(OSError):
            folder.rmdir()
        process.run([process.need("umount"), tracefs], check=False)


def _begin(folder: Path, dev: int) -> None:
    try:
        folder.mkdir(exist_ok=True)
        (folder / "trace_clock").write_text("global")  # the default may differ between processors
        (folder / "buffer_size_kb").write_text(str(BUFFER_KIB))
        (folder / EVENT / "filter").write_text(f"dev == {dev}")
        (folder / EVENT / "enable").write_text("1")
    except OSError as exc:
        raise CapabilityError(
            f"the kernel does not trace block devices here: {exc}", hint="--method page-cache works without"
        ) from exc


def _sweep(instances: Path, run: Path = Path("/run/builder")) -> None:
    """Remove instances of processes that were killed: those whose workplace is gone."""
    for folder in instances.glob(f"{PREFIX}*"):
        if not (run / folder.name.removeprefix(PREFIX)).exists():
            with suppress(OSError):
                folder.rmdir()
