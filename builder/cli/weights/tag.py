"""builder weights tag."""

from __future__ import annotations

import click

from builder.cli.weights.inputs import Inputs, store_options
from builder.errors import ConfigError


@click.command("tag")
@click.argument("ref")
@click.argument("tag", required=False)
@click.option("--delete", is_flag=True, help="Remove the ref REF; its version stays until `builder weights gc`.")
@click.option("--force", is_flag=True, help="Move a tag that leads elsewhere; with --delete, remove a bare name too.")
@click.option("--dry-run", is_flag=True, help="Say what would change; write nothing.")
@store_options
def command(inputs: Inputs, ref: str, tag: str | None, delete: bool, force: bool, dry_run: bool) -> None:
    """Let name@TAG lead to the version that REF does, so that no gc removes it; or remove a tag.

    REF: a name, name@tag, name@revision or sha256:<hex>.
    """
    from builder import pipeline

    if delete == bool(tag):
        raise ConfigError("a tag is made with REF TAG, and removed with --delete REF", hint="see `builder weights tag --help`")
    if tag:
        report = pipeline.tag_weights(inputs.store(), ref, tag, force=force, dry_run=dry_run, progress=inputs.session.progress)
    else:
        report = pipeline.untag_weights(inputs.store(), ref, force=force, dry_run=dry_run)
    would = "would be " if dry_run else ""
    if not report.changed:
        human = f"{report.ref}  {report.digest}  (already)"
    elif not report.digest:
        human = f"{report.ref}  {would}removed; it led to {report.before or 'nothing readable'}"
    else:
        human = f"{report.ref}  {report.digest}" + (f"  ({would}moved from {report.before[:19]})" if report.before else "")
    inputs.session.show(report.to_json(), human)
