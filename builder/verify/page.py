"""The report as Markdown, and as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from builder import render
from builder.verify import view
from builder.verify.report import Level, VerifyReport, seconds
from builder.verify.view import Row

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#&~])")


@dataclass(frozen=True)
class Mark:
    """A part of a chart row. x, width: percent of the chart."""

    x: float
    width: float


@dataclass(frozen=True)
class Scale:
    """A linear scale from 0 to the last tick."""

    ticks: tuple[float, ...]

    @classmethod
    def to(cls, longest: float) -> Scale:
        return cls(tuple(view.ticks(longest)))

    def percent(self, value: float) -> float:
        return round(100 * value / self.ticks[-1], 3)

    @property
    def marks(self) -> list[tuple[float, str]]:
        return [(self.percent(t), view.tick_text(t)) for t in self.ticks]


def markdown(report: VerifyReport) -> str:
    """report.md: the same figures for a pull request or a job summary."""
    run = view.shown_run(report)
    return render.text(
        "report.md.j2",
        report=report,
        run=run,
        rows=view.rows(run),
        view=view,
        seconds=seconds,
        escape=escape,
        date=date(report),
    )


def html(report: VerifyReport) -> str:
    """report.html. Every value is escaped by the template environment."""
    run = view.shown_run(report)
    rows = view.rows(run)
    end = max([run.cold_start_s, run.first_answer_s or 0.0, *(start + length for row in rows for start, length in row.spans)])
    starts = Scale.to(end)
    slowest = max([v for level in report.load for v in (level.total_p99, level.ttft_p99) if v is not None], default=0.0)
    latency = Scale.to(slowest)
    return render.html(
        "report.html.j2", report=report, run=run, view=view, seconds=seconds, date=date(report), starts=starts, latency=latency,
        lanes=[(lane, [(row, marks(row, starts)) for row in rows if row.lane == lane]) for lane in _lanes(rows)],
        levels=[(level, spread(level, latency)) for level in report.load],
    )  # fmt: skip


def marks(row: Row, scale: Scale) -> list[Mark]:
    """The row's spans on the scale; never so thin that a bar disappears (0.25 % is 2 pixels of 800)."""
    return [Mark(scale.percent(start), max(0.25, scale.percent(length))) for start, length in row.spans]


def spread(level: Level, scale: Scale) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """(name, [(percentile, percent, text)]) of the two latencies of a level, for the chart."""
    pairs = (
        ("first token", (("p50", level.ttft_p50), ("p95", level.ttft_p95), ("p99", level.ttft_p99))),
        ("whole answer", (("p50", level.total_p50), ("p95", level.total_p95), ("p99", level.total_p99))),
    )
    return [
        (name, [(p, scale.percent(value), f"{name}, {p}: {seconds(value)}") for p, value in points if value is not None])
        for name, points in pairs
    ]


def escape(text: str) -> str:
    """`text` as one line of Markdown text, in or out of a table cell.

    >>> print(escape("a|b\\n<b>"))
    a\\|b \\<b\\>
    """
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def date(report: VerifyReport) -> str:
    """When it ended, in UTC, as ISO 8601 writes it."""
    return datetime.datetime.fromtimestamp(report.created, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _lanes(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.lane for row in rows))
