"""`builder schema`."""

from __future__ import annotations

from pathlib import Path

import click

from builder.config import schema


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="Write it to this file.")
def command(output: Path | None) -> None:
    """Print the JSON Schema of builder.yaml, for editors and check-jsonschema."""
    if output:
        output.write_text(schema.text())
    else:
        click.echo(schema.text(), nl=False)
