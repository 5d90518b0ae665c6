"""builder weights copy."""

from __future__ import annotations

import click

from builder import units
from builder.cli.weights.inputs import Inputs, store_options


@click.command("copy")
@click.argument("ref", required=False)
@click.option("--to-store", required=True, metavar="URL", help="A folder or s3://bucket/prefix.")
@click.option("--to-endpoint-url", metavar="URL", help="Its S3-compatible server; default: AWS.")
@click.option("--to-region", help="Its bucket's region.")
@click.option("--tag", default="", help="Also name@TAG there; needed where REF is a digest.")
@click.option("--force", is_flag=True, help="Move a tag that leads to another version there.")
@click.option("--dry-run", is_flag=True, help="Ask both stores; write nothing.")
@store_options
def command(
    inputs: Inputs,
    ref: str | None,
    to_store: str,
    to_endpoint_url: str | None,
    to_region: str | None,
    tag: str,
    force: bool,
    dry_run: bool,
) -> None:
    """Copy the model REF into another store, every chunk verified on its way; only what is missing there moves.

    Both stores take their credentials from the same AWS configuration.
    """
    from builder import pipeline
    from builder.stores.open import open_store

    report = pipeline.copy_weights(
        inputs.store(read_only=True),
        inputs.ref(ref),
        open_store(to_store, endpoint_url=to_endpoint_url, region=to_region),
        inputs.engine(),
        memory=inputs.memory,
        tag=tag,
        force=force,
        dry_run=dry_run,
        progress=inputs.session.progress,
    )
    if not dry_run and not report.guarded:
        inputs.session.say(f"{report.store} may only be read, so a gc there was not held off; all chunks were there")
    inputs.session.show(
        report.to_json(),
        f"{report.to_store}  {', '.join(report.refs)}  {report.digest}\n"
        f"{units.format_size(report.bytes)}, {units.count(report.chunks, 'chunk')}: "
        f"{'would send' if dry_run else 'sent'} {report.sent_chunks} ({units.format_size(report.sent_bytes)}), "
        f"{report.reused_chunks} already there, in {units.format_seconds(report.seconds)}"
        + (", with its signatures" if report.signed else ""),
    )
