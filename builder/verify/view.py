"""What the report's pages and the terminal show, computed once: rows, gaps, scales, sentences. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from builder.format.phases import Phase
from builder.units import format_size as format_size
from builder.verify.report import LANES, BudgetResult, Run, VerifyReport, seconds

UNACCOUNTED = "unaccounted"
EXPLAIN = {
    "container_start": "asked for, until the first process exists",
    "runtime_import": "process exists, until its own code runs",
    "cuda_init": "driver and context",
    "weights_first_layers": "until embeddings and the first layer are in place",
    "weights_all": "until every weight is verified and in place",
    "engine_init": "engine started, until it answers its health check",
    "compile": "kernels and graphs",
    "first_token": "first warm-up request, until its first token",
    "stable": "warm-up, until latency stops falling",
    UNACCOUNTED: "before ready, in no phase above",
}


@dataclass(frozen=True)
class Row:
    """One bar. spans: (start, seconds) from the moment the server was asked for. total: their sum."""

    lane: str
    name: str
    spans: tuple[tuple[float, float], ...]
    detail: str = ""

    @property
    def total(self) -> float:
        return sum(length for _, length in self.spans)

    @property
    def explain(self) -> str:
        return EXPLAIN.get(self.name, "")


def shown_run(report: VerifyReport) -> Run:
    """The run whose cold start is the reported p95; with nearest rank that is one that happened."""
    return next(r for r in report.runs if r.cold_start_s == report.cold_start_p95)


def rows(run: Run) -> list[Row]:
    """Lane by lane in the order of their start; at the end what no phase covers, which is a bar of its own."""
    out = []
    for lane in (*LANES, *sorted({p.lane for p in run.phases} - set(LANES))):
        for phase in run.lane(lane):
            spans: tuple[tuple[float, float], ...] = ((phase.start - run.asked, phase.seconds),)
            out.append(Row(lane, phase.phase, spans, _detail(phase.detail)))
    spans = tuple((start - run.asked, end - start) for start, end in gaps(run.phases, run.asked, run.ready))
    return [*out, Row(UNACCOUNTED, UNACCOUNTED, spans)]


def gaps(phases: Iterable[Phase], start: float, end: float) -> list[tuple[float, float]]:
    """The parts of [start, end] that no phase covers.

    >>> gaps([Phase("a", 1, 2), Phase("b", 1.5, 3)], 0, 4)
    [(0, 1), (3, 4)]
    """
    out, at = [], start
    for phase in sorted(phases, key=lambda p: p.start):
        if phase.start > at:
            out.append((at, min(phase.start, end)))
        at = max(at, phase.end)
        if at >= end:
            break
    if at < end:
        out.append((at, end))
    return [(a, b) for a, b in out if b > a]


def ticks(longest: float) -> list[float]:
    """Round marks from 0 that reach `longest`: four to seven of them, in steps of 1, 2 or 5 times a power of ten.

    >>> ticks(3.3), ticks(0.04)
    ([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 0.01, 0.02, 0.03, 0.04])
    """
    if longest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(longest / 4))
    step = next(m * power for m in (1, 2, 5, 10) if longest / (m * power) <= 6)
    return [round(i * step, 9) for i in range(math.ceil(round(longest / step, 6)) + 1)]


def tick_text(value: float) -> str:
    """
    >>> tick_text(0), tick_text(0.25), tick_text(4.0)
    ('0', '250 ms', '4 s')
    """
    return "0" if value == 0 else f"{value * 1000:g} ms" if value < 1 else f"{value:g} s"


def verdict(report: VerifyReport) -> str:
    """One sentence: what held, what did not."""
    checks = _held(len(report.checks), sum(c.ok for c in report.checks), "check")
    if not report.budgets:
        return f"{checks}; no budget is set"
    return f"{checks}; {_held(len(report.budgets), sum(b.ok for b in report.budgets), 'budget', verb='met')}"


def machine(report: VerifyReport) -> str:
    """The host in one line."""
    h = report.host
    gpus = ", ".join(h.gpus) if h.gpus else "no GPU"
    docker = f"Docker {h.docker}" if h.docker else "without Docker"
    return f"{h.cores} cores of {h.cpu or 'an unnamed processor'}, {format_size(h.memory)} memory, {gpus}, {h.system}, {docker}"


def key_figures(report: VerifyReport) -> list[tuple[str, str, str]]:
    """(figure, name, remark) of what a reader looks for first."""
    run = shown_run(report)
    count = len(report.runs)
    share = _share(run.unaccounted_s, run.cold_start_s)
    of_runs = f"p95 of {count} starts" if count > 1 else "one start"
    out = [
        (seconds(report.cold_start_p95), "cold start", f"asked for, until ready; {of_runs}"),
        (seconds(run.first_answer_s), "first answered token", "asked for, until the first token of an answer"),
        (seconds(run.unaccounted_s), UNACCOUNTED, f"{share} of the cold start, in no phase"),
    ]
    if report.image:
        out.append((format_size(report.image.size), "image", report.image.size_note))
    return out


def budget_sentence(budget: BudgetResult) -> str:
    found, limit = budget.texts
    return f"{found} of {limit}"


def _share(part: float, whole: float) -> str:
    percent = 100 * part / whole if whole > 0 else 0.0
    return "below 1 %" if 0 < percent < 1 else f"{percent:.0f} %"


def _held(total: int, good: int, noun: str, *, verb: str = "held") -> str:
    if good == total:
        return f"{'both' if total == 2 else 'all'} {total} {noun}s {verb}" if total != 1 else f"the {noun} {verb}"
    return f"{total - good} of {total} {noun}s {'missed' if verb == 'met' else 'failed'}"


def _detail(detail: dict[str, Any]) -> str:
    """Details of a phase in a few words, by the unit in their name. Digests stand elsewhere in the report.

    >>> _detail({"fetched_bytes": 98_000_000, "ttft_s": 0.25, "digest": "sha256:00", "pid": 15})
    'fetched 93.5 MiB, pid 15, ttft 250 ms'
    """
    parts = []
    for key, value in sorted(detail.items()):
        if key == "digest" or not isinstance(value, str | int | float):
            continue
        name, _, unit = key.replace("_", " ").rpartition(" ")
        if unit == "bytes" and not isinstance(value, str):
            parts.append(f"{name or 'in all'} {format_size(value)}")
        elif name and unit == "s" and not isinstance(value, str):
            parts.append(f"{name} {seconds(value)}")
        else:
            parts.append(
                f"{key.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
            )
    return ", ".join(parts)


def bar(spans: Sequence[tuple[float, float]], longest: float, width: int, full: str = "█", thin: str = "▏") -> str:
    """A bar for a terminal: `width` cells for [0, longest] seconds; what is shorter than half a cell is a thin mark.

    >>> bar([(1.0, 2.0)], 4.0, 8)
    '  ████'
    """
    cells = [" "] * width
    for start, length in spans:
        first = min(width - 1, int(start / longest * width)) if longest > 0 else 0
        count = round(length / longest * width) if longest > 0 else 0
        for i in range(first, min(width, first + max(1, count))):
            cells[i] = full if count else thin
    return "".join(cells).rstrip()


@dataclass(frozen=True)
class Change:
    """One phase of two reports, in seconds; None where a report does not have it."""

    lane: str
    name: str
    before: float | None
    after: float | None

    @property
    def texts(self) -> tuple[str, str, str]:
        """before, after and the difference for people."""
        if self.before is None or self.after is None:
            return seconds(self.before), seconds(self.after), "-"
        change = self.after - self.before
        return seconds(self.before), seconds(self.after), ("+" if change >= 0 else "-") + seconds(abs(change))

    def to_json(self) -> dict[str, Any]:
        return {"lane": self.lane, "phase": self.name, "before_s": self.before, "after_s": self.after}


def compare(before: VerifyReport, after: VerifyReport) -> list[Change]:
    """Each report's shown start, phase by phase in the second one's order, then cold start and first answered token."""
    one, two = shown_run(before), shown_run(after)
    left, right = _totals(one), _totals(two)
    out = [Change(lane, name, left.get((lane, name)), right.get((lane, name))) for lane, name in {**right, **left}]
    out.append(Change("", "cold start", one.cold_start_s, two.cold_start_s))
    return [*out, Change("", "first answered token", one.first_answer_s, two.first_answer_s)]


def _totals(run: Run) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for row in rows(run):
        found[row.lane, row.name] = found.get((row.lane, row.name), 0.0) + row.total
    return found
