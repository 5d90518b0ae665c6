"""builder weights: one file per command, imported when it runs."""

from __future__ import annotations

import click

from builder.cli.lazy import LazyGroup

COMMANDS = {
    "push": ("builder.cli.weights.push", "Upload a model in verified chunks; only what is missing is sent."),
    "pull": ("builder.cli.weights.pull", "Restore a model into a folder, byte for byte, verified."),
    "verify": ("builder.cli.weights.verify", "Check every chunk in a store, or every byte of a folder."),
    "repair": ("builder.cli.weights.repair", "Replace only what is bad or missing."),
    "ls": ("builder.cli.weights.ls", "List the models in a store."),
}


@click.group("weights", cls=LazyGroup, lazy=COMMANDS)
def command() -> None:
    """Push, pull, verify and repair model weights."""
