"""Where this start's time went: phases to stdout and to a file as JSON lines, log lines to stderr."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.format.phases import Phase


def log(step: str, text: str) -> None:
    """One line on stderr. Written in one call, so that lines of threads and of the engine do not mix."""
    sys.stderr.write(f"builder: {step}: {text}\n")
    sys.stderr.flush()


def process_started() -> float:
    """When this process began, in seconds since the epoch; to the kernel's clock tick of 10 ms.

    Source: proc(5), stat field 22, `starttime` in ticks since boot; CLOCK_BOOTTIME counts from the same moment.
    """
    stat = Path("/proc/self/stat").read_bytes()
    fields = stat[stat.rindex(b")") + 2 :].split()  # the program's name may hold blanks and brackets
    ticks = int(fields[22 - 3])
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


class Lines:
    """A transfer's progress (builder.transfer.progress.Progress) as a log line every 10 s; short ones stay silent.

    A task without a total is something waited for: it is said at once, because its end is in other hands.
    """

    def __init__(self, step: str, *, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.step, self.every_s, self.clock = step, every_s, clock
        self._tasks: dict[int, _Task] = {}
        self._lock = threading.Lock()

    def add(self, title: str, total: int = 0, unit: str = "B") -> int:
        if not total:
            log(self.step, title)
        with self._lock:
            self._tasks[number := len(self._tasks)] = _Task(title, total, self.clock())
        return number

    def advance(self, task: int, amount: int) -> None:
        with self._lock:
            t, now = self._tasks[task], self.clock()
            t.done += amount
            if now - t.said < self.every_s:
                return
            t.said = now
            rate = t.done / (now - t.began)
        mib = 2**20
        log(self.step, f"{t.title}: {t.done / mib:.0f} of {t.total / mib:.0f} MiB, {rate / mib:.0f} MiB/s")

    def note(self, task: int, text: str) -> None: ...

    def done(self, task: int, text: str = "") -> None: ...


@dataclass
class _Task:
    title: str
    total: int
    began: float
    done: int = 0

    def __post_init__(self) -> None:
        self.said = self.began


class Recorder:
    """Keeps and writes finished phases. Thread-safe."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._phases: list[Phase] = []
        self._lock = threading.Lock()

    @property
    def phases(self) -> list[Phase]:
        with self._lock:
            return list(self._phases)

    def add(self, phase: str, start: float, end: float, detail: Mapping[str, Any] | None = None) -> Phase:
        """Record [start, end], seconds since the epoch. An unwritable file is reported, and does not stop the server."""
        done = Phase(phase, start, max(start, end), "container", dict(detail or {}))
        line = done.to_line() + "\n"
        with self._lock:
            self._phases.append(done)
            sys.stdout.write(line)
            sys.stdout.flush()
            if self.path:
                try:
                    with self.path.open("a") as file:
                        file.write(line)
                except OSError as exc:
                    log("phases", f"{self.path}: {exc.strerror}; phases go to stdout only")
                    self.path = None
        return done

    @contextmanager
    def phase(self, name: str) -> Iterator[dict[str, Any]]:
        """`with recorder.phase("engine_init") as detail:` records on success only; `detail` may be filled meanwhile."""
        start, detail = time.time(), dict[str, Any]()
        yield detail
        self.add(name, start, time.time(), detail)
