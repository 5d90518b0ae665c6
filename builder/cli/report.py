"""`builder report`: show, turn into pages, and compare what `builder verify` wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.common import Session, options, table

if TYPE_CHECKING:
    from builder.verify.report import VerifyReport

BAR = 28
FILE = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """Show and compare verify reports."""


@command.command()
@options
@click.argument("file", type=FILE)
def show(session: Session, file: Path) -> None:
    """Print the report in FILE (report.json)."""
    from builder.verify import files

    report = files.read(file)
    session.show(report.to_json(), human(report))


@command.command()
@options
@click.argument("reports", metavar="FILE...", type=FILE, nargs=-1, required=True)
def html(session: Session, reports: tuple[Path, ...]) -> None:
    """Write report.html and report.md again, beside each FILE (report.json)."""
    from builder.verify import files

    written = [files.write_pages(files.read(file), file.parent, file.stem) for file in reports]
    session.show({"written": [str(w.html) for w in written]}, "\n".join(str(w.html) for w in written))


@command.command()
@options
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
def compare(session: Session, before: Path, after: Path) -> None:
    """Print the phases of two reports beside each other."""
    from builder.verify import files, view

    changes = view.compare(files.read(before), files.read(after))
    rows = [["lane", "phase", "before", "after", "change"], *([c.lane, c.name, *c.texts] for c in changes)]
    session.show({"phases": [c.to_json() for c in changes]}, table(rows, right=(2, 3, 4)))


def human(report: VerifyReport) -> str:
    """The report for a terminal."""
    parts = [_head(report), _phases(report), _checks(report), _load(report), _budgets(report), _notes(report)]
    return "\n\n".join(part for part in parts if part)


def _head(report: VerifyReport) -> str:
    from builder.verify import view

    what = report.image.reference if report.image else f"{report.name}, in place"
    figures = "\n".join(f"  {value:>9}  {name}: {remark}" for value, name, remark in view.key_figures(report))
    return f"{click.style(what, bold=True)}\n{view.machine(report)}\n\n{figures}"


def _phases(report: VerifyReport) -> str:
    from builder.verify import view
    from builder.verify.report import seconds

    run = view.shown_run(report)
    found = view.rows(run)
    longest = max([run.cold_start_s, *(start + length for row in found for start, length in row.spans)])
    full, thin = ("█", "▏") if (sys.stdout.encoding or "").lower().startswith("utf") else ("#", "|")
    rows = [["lane", "phase", "time", f"0 {'':{BAR - 12}} {seconds(longest):>8}"]]
    for row in found:
        lane = "" if row.lane == row.name else row.lane
        rows.append([lane, row.name, seconds(row.total), view.bar(row.spans, longest, BAR, full, thin)])
    return table(rows, right=(2,))


def _checks(report: VerifyReport) -> str:
    lines = []
    width = max((len(c.id) for c in report.checks), default=0)
    for c in report.checks:
        mark = click.style("ok    ", fg="green") if c.ok else click.style("FAILED", fg="red", bold=True)
        lines.append(f"{mark}  {c.id.ljust(width)}  {c.found}" + ("" if c.ok else f"; expected {c.expected}"))
    return "\n".join(lines)


def _load(report: VerifyReport) -> str:
    from builder.verify.report import seconds

    if not report.load:
        return ""
    head = ["at a time", "requests", "failed", "first token p50", "p95", "p99", "answer p50", "p95", "p99", "tokens/s"]
    rows = [
        [str(v.concurrency), str(v.requests), str(v.errors)]
        + [seconds(x) for x in (v.ttft_p50, v.ttft_p95, v.ttft_p99, v.total_p50, v.total_p95, v.total_p99)]
        + [f"{v.tokens_per_s:.1f}"]
        for v in report.load
    ]
    return table([head, *rows], right=tuple(range(len(head))))


def _budgets(report: VerifyReport) -> str:
    lines = []
    for b in report.budgets:
        found, limit = b.texts
        mark = click.style("met   ", fg="green") if b.ok else click.style("MISSED", fg="red", bold=True)
        lines.append(f"{mark}  {b.id}: {found} of {limit}")
    return "\n".join(lines)


def _notes(report: VerifyReport) -> str:
    return "\n".join(f"- {note}" for note in report.notes)
