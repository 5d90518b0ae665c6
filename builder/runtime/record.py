"""Where this start's time went: phases to stdout and to a file as JSON lines, log lines to stderr."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
