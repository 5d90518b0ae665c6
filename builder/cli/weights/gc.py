"""builder weights gc."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

import click

from builder import units
from builder.cli.common import table
from builder.cli.weights.inputs import Inputs, store_options
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.weights.gc import GcReport

SHOWN = 20


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    try:
        return units.parse_seconds(value) if value else None
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


@click.command("gc")
@click.option("--grace", callback=_seconds, metavar="TIME", help="What is younger stays; default 24h. Units: s, min, h, d.")
@click.option(
    "--keep-last",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    metavar="N",
    help="Newest versions of each name to keep.",
)
@click.option("--wait", callback=_seconds, metavar="TIME", help="For running pushes to end; default 15min.")
@click.option("--yes", is_flag=True, help="Delete; without it, only show.")
@click.option("--dry-run", is_flag=True, help="Only show, which is the default.")
@store_options
def command(inputs: Inputs, grace: float | None, keep_last: int, wait: float | None, yes: bool, dry_run: bool) -> None:
    """Delete what no model needs: versions that no ref leads to and that are not among the newest, and loose chunks.

    Without --yes it only shows what that is. Safe beside running pushes: it waits for them, and they for it.
    """
    if yes and dry_run:
        raise ConfigError("--yes deletes, --dry-run does not", hint="leave one of them out")
    from builder import pipeline
    from builder.weights.gc import GRACE_S

    report = pipeline.collect_weights(
        inputs.store(),
        inputs.engine(),
        grace_s=GRACE_S if grace is None else grace,
        keep_last=keep_last,
        wait_s=wait,
        dry_run=not yes,
        progress=inputs.session.progress,
    )
    inputs.session.show(report.to_json(), _human(report))
    if report.dry_run and (report.manifests or report.signatures or report.chunks):
        inputs.session.say(f"nothing was deleted; to delete: {_again(inputs, report)}")


def _human(report: GcReport) -> str:
    verb = "would go" if report.dry_run else "deleted"
    rows = [
        ["", "VERSIONS", "CHUNKS", "SIZE", ""],
        _row(verb, len(report.manifests), report.chunks, report.bytes),
        [*_row("too young", report.young_manifests, report.young_chunks, report.young_bytes)[:4], _grace(report.grace_s)],
        _row("needed", report.kept_manifests, report.kept_chunks, report.kept_bytes),
    ]
    lines = [report.store, table(rows, right=(1, 2, 3))]
    for gone in report.manifests[:SHOWN]:
        when = time.strftime("%Y-%m-%d %H:%MZ", time.gmtime(gone.modified))
        lines.append(f"  - {gone.name or '(damaged)'}  {gone.digest}  pushed {when}")
    if len(report.manifests) > SHOWN:
        lines.append(f"  and {len(report.manifests) - SHOWN} more")
    if report.foreign:
        lines.append(f"{units.count(report.foreign, 'object')} below chunks/ and manifests/ that builder did not write: left")
    return "\n".join(lines)


def _row(what: str, versions: int, chunks: int, size: int) -> list[str]:
    return [what, f"{versions:,}", f"{chunks:,}", units.format_size(size), ""]


def _grace(seconds: float) -> str:
    whole = f"{seconds / 3600:g} h" if seconds >= 3600 else units.format_seconds(seconds)
    return f"not needed, but written in the last {whole}" if seconds else ""


def _again(inputs: Inputs, report: GcReport) -> str:
    words = ["builder", "weights", "gc"]
    given = {
        "--store": inputs.store_url,
        "--endpoint-url": inputs.endpoint_url,
        "--region": inputs.region,
        "-f": inputs.file,
        "--grace": f"{report.grace_s:g}s",
        "--keep-last": report.keep_last,
    }
    for name, value in given.items():
        words += [name, str(value)] if value is not None else []
    return shlex.join([*words, "--yes"])
