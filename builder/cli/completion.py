"""`builder completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of SHELL: `source <(builder completion bash)`."""
    from builder.cli.group import group

    kind = get_completion_class(shell)
    if kind is None:  # click.Choice has let only known shells through
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(group, {}, "builder", "_BUILDER_COMPLETE").source())
