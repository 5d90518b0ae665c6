"""Cold-start phases: the names, and the record that every part of the system writes and reads.

One JSON object per line: {"phase", "start", "end", "lane", "detail"}; seconds since the epoch, so that records of one
machine join. Lanes say whose clock it was ("host": the machine that started the container; "container": the runtime
inside). Durations of different lanes overlap: they must not be added up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

PHASES = (
    "container_start",  # asked for, until the runtime's process exists
    "runtime_import",  # process exists, until its own code runs
    "cuda_init",  # driver and context; absent without a GPU
    "weights_first_layers",  # until embeddings and the first layer are on disk or device
    "weights_all",  # until every weight is verified and in place
    "compile_cache",  # a captured compile cache is looked for, until it is in place or refused
    "engine_init",  # engine started, until it listens and answers its health check
    "compile",  # kernels and graphs, where the engine reports it
    "first_token",  # first warm-up request, until its first token
    "stable",  # warm-up, until latency stops falling
)


@dataclass(frozen=True)
class Phase:
    """One phase of one start. start, end: seconds since the epoch."""

    phase: str
    start: float
    end: float
    lane: str = "container"
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def to_line(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def parse_lines(lines: Iterable[str]) -> list[Phase]:
    """Phases among `lines`; anything that is not a phase record (an engine's own log) is passed over."""
    found = []
    for line in lines:
        if not line.startswith("{"):
            continue
        try:
            raw = json.loads(line)
            found.append(Phase(raw["phase"], float(raw["start"]), float(raw["end"]), raw["lane"], raw["detail"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def unaccounted(phases: Iterable[Phase], start: float, end: float) -> float:
    """Seconds of [start, end] that no phase covers."""
    covered, at = 0.0, start
    for p in sorted(phases, key=lambda p: p.start):
        lo, hi = max(p.start, at), min(p.end, end)
        if hi > lo:
            covered += hi - lo
            at = hi
    return max(0.0, end - start - covered)
