"""builder weights pull."""

from __future__ import annotations

from pathlib import Path

import click

from builder import units
from builder.cli.weights.inputs import Inputs, store_options


@click.command("pull")
@click.argument("ref", required=False)
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to make.")
@store_options
def command(inputs: Inputs, ref: str | None, folder: Path) -> None:
    """Restore the model REF into a folder, byte for byte, verified; what an earlier run fetched is kept.

    REF: a name, name@revision or sha256:<hex>; default: the only model in the store.
    """
    from builder import pipeline

    source = inputs.store().source()
    wanted, progress = inputs.ref(ref), inputs.session.progress
    report = pipeline.restore_weights(source, wanted, folder, concurrency=inputs.concurrency, progress=progress)
    inputs.session.show(
        report.to_json(),
        f"{report.folder}  {report.digest}\n"
        f"fetched {report.fetched_chunks} chunks ({units.format_size(report.fetched_bytes)}), "
        f"{units.format_size(report.reused_bytes)} already there, in {units.format_seconds(report.seconds)}",
    )
