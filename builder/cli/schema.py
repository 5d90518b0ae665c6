"""`builder schema`."""

from __future__ import annotations

import click

from builder.config import schema


@click.command()
def command() -> None:
    """Print the JSON Schema of builder.yaml, for editors and check-jsonschema."""
    click.echo(schema.text(), nl=False)
