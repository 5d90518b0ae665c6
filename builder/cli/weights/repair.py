"""builder weights repair: a store from the model's source, or a restored folder from the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder import units
from builder.cli.weights.inputs import Inputs, source_options, store_options
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.transfer.faults import Fault


@click.command("repair")
@click.argument("ref", required=False)
@click.option("--from", "source", metavar="SOURCE", help="Where the model came from; default: model.source of builder.yaml.")
@click.option("--local", "folder", type=click.Path(path_type=Path), help="A restored folder, from the store.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent; write nothing.")
@source_options
@store_options
def command(
    inputs: Inputs,
    ref: str | None,
    source: str | None,
    folder: Path | None,
    dry_run: bool,
    revision: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> None:
    """Replace only the bad or missing chunks of REF in a store, or of a restored folder."""
    if folder is not None:
        if ref or source or dry_run:
            raise ConfigError("--local repairs a folder from the store", hint="leave out REF, --from and --dry-run")
        _repair_folder(inputs, folder)
        return
    from builder import pipeline

    asked = inputs.model(source, revision, include, exclude)
    report = pipeline.repair_weights(
        asked.ref,
        inputs.store(),
        inputs.engine(),
        name=inputs.ref(ref),
        token=asked.token,
        dry_run=dry_run,
        progress=inputs.session.progress,
    )
    verb = "would put" if dry_run else "put"
    lines = [f"{report.name}  {report.digest}", *(f"  {fault}" for fault in report.bad)]
    lines.append(
        f"{verb} {report.repaired_chunks} of {report.chunks} chunks again "
        f"({units.format_size(report.repaired_bytes)}), in {units.format_seconds(report.seconds)}"
    )
    inputs.session.show(report.to_json(), "\n".join(lines))


def _repair_folder(inputs: Inputs, folder: Path) -> None:
    from builder.transfer.check import repair_folder

    workers, memory = inputs.workers, inputs.memory
    report = repair_folder(folder, inputs.source(), workers=workers, memory=memory, progress=inputs.session.progress)
    inputs.session.show(
        report.to_json(),
        f"{report.folder}  {report.digest}\n{_lines(report.faults)}"
        f"fetched {report.fetched_chunks} chunks ({units.format_size(report.fetched_bytes)})",
    )


def _lines(faults: tuple[Fault, ...]) -> str:
    return "".join(f"  {fault}\n" for fault in faults)
