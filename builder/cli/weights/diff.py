"""builder weights diff: two versions, or a source before it is pushed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from builder import units
from builder.cli.common import cache_folder, table
from builder.cli.weights.inputs import Inputs, source_options, store_options
from builder.cli.weights.push import chunk_size_option, default_name
from builder.errors import ConfigError, printable

if TYPE_CHECKING:
    from builder.weights.diff import DiffReport, FileChange, TensorChange

SHOWN = 20
_SIGNS = {"added": "+", "removed": "-", "changed": "~", "unclear": "?"}


@click.command("diff")
@click.argument("before", required=False)
@click.argument("after", required=False)
@click.option("--from", "source", metavar="SOURCE", help="In place of AFTER: what pushing this as BEFORE would change.")
@click.option("--other-store", metavar="URL", help="The store of AFTER, where it is another one.")
@click.option("--other-endpoint-url", metavar="URL", help="Its S3-compatible server; default: AWS.")
@click.option("--other-region", help="Its bucket's region.")
@chunk_size_option
@source_options
@store_options
def command(
    inputs: Inputs,
    before: str | None,
    after: str | None,
    source: str | None,
    other_store: str | None,
    other_endpoint_url: str | None,
    other_region: str | None,
    chunk_size: int | None,
    revision: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> None:
    """Compare two versions of a model by their manifests, or SOURCE with the version it would replace.

    BEFORE, AFTER: a name, name@tag, name@revision or sha256:<hex>. With --from, SOURCE is read and hashed, nothing is sent.
    """
    from builder import pipeline
    from builder.stores.open import open_store

    if source is not None:
        if after or other_store:
            raise ConfigError("--from SOURCE takes the place of AFTER", hint="leave AFTER and --other-store out")
        report = _with_source(inputs, before, source, chunk_size, revision, include, exclude)
    elif before and after:
        other = (
            open_store(other_store, endpoint_url=other_endpoint_url, region=other_region, read_only=True)
            if other_store
            else None
        )
        report = pipeline.compare_weights(inputs.store(read_only=True), before, after, other=other)
    else:
        raise ConfigError("two versions are compared", hint="give BEFORE and AFTER, or --from SOURCE")
    shown = SHOWN if not inputs.session.verbose else SHOWN + len(report.files) + len(report.tensors)
    inputs.session.show(report.to_json(), _human(report, shown))


def _with_source(
    inputs: Inputs,
    ref: str | None,
    source: str,
    chunk_size: int | None,
    revision: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> DiffReport:
    from builder import pipeline
    from builder.weights import split

    spec, store = inputs.spec(), inputs.store()
    asked = inputs.model(source, revision, include, exclude)
    ref = ref or (spec.name if spec else default_name(source))
    pushed = pipeline.publish_weights(
        asked.ref,
        store,
        inputs.engine(),
        name=ref.partition("@")[0],
        chunk_bytes=chunk_size or (spec.weights.chunk_bytes if spec else split.TARGET_BYTES),
        memory=inputs.memory,
        index=cache_folder("index"),
        token=asked.token,
        dry_run=True,
        progress=inputs.session.progress,
    )
    return pipeline.compare_source(pushed, store, ref)


def _human(report: DiffReport, shown: int) -> str:
    size = units.format_size
    lines = [f"{report.name}  {report.before[:19] or 'nothing'} -> {report.after[:19]}"]
    if report.same:
        return "\n".join([*lines, f"the same files: {units.count(report.same_files, 'file')}, {size(report.after_bytes)}"])
    lines.append(f"files    {_counts([f.change for f in report.files], report.same_files)}")
    lines += _aligned([_file(f) for f in report.files[:shown]], len(report.files) - shown)
    if report.tensors or report.same_tensors:
        lines.append(f"tensors  {_counts([t.change for t in report.tensors], report.same_tensors)}")
        certain = [t for t in report.tensors if t.change != "unclear" or shown > SHOWN]
        lines += _aligned([_tensor(t) for t in certain[:shown]], len(certain) - shown)
    lines.append(
        f"chunks   {report.new_chunks:,} new ({size(report.new_bytes)}), {report.shared_chunks:,} shared "
        f"({size(report.shared_bytes)}), {report.gone_chunks:,} gone ({size(report.gone_bytes)})"
    )
    if report.send_chunks is not None and report.send_bytes is not None:
        share = 100 * report.send_bytes / report.after_bytes if report.after_bytes else 0.0
        lines.append(f"a push sends {units.count(report.send_chunks, 'chunk')}, {size(report.send_bytes)} ({share:.1f} %)")
    if any(t.change == "unclear" for t in report.tensors):
        lines.append("unclear: shares a changed chunk with other tensors, so it may be the same (-v lists them)")
    return "\n".join(lines)


def _counts(changes: list[str], same: int) -> str:
    parts = [f"{n:,} {what}" for what in ("changed", "added", "removed", "unclear") if (n := changes.count(what))]
    return ", ".join([*parts, f"{same:,} same"])


def _file(change: FileChange) -> list[str]:
    before, after = (units.format_size(n) if n else "" for n in (change.before, change.after))
    size = before if before == after else f"{before} -> {after}" if before and after else before or after
    new = f"{units.format_size(change.new_bytes)} new" if change.new_bytes else ""
    return [f"  {_SIGNS[change.change]} {printable(change.path)}", size, new]


def _tensor(change: TensorChange) -> list[str]:
    form = change.before if change.before == change.after else " -> ".join(f for f in (change.before, change.after) if f)
    return [f"  {_SIGNS[change.change]} {printable(change.name)}", printable(form)]


def _aligned(rows: list[list[str]], more: int) -> list[str]:
    return ([table(rows)] if rows else []) + ([f"  and {more:,} more (-v shows all)"] if more > 0 else [])
