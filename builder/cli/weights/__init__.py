"""builder weights: one file per command, imported when it runs."""

from __future__ import annotations

import click

from builder.cli.lazy import LazyGroup

COMMANDS = {
    "push": ("builder.cli.weights.push", "Upload a model in verified chunks; only what is missing is sent."),
    "pull": ("builder.cli.weights.pull", "Restore a model into a folder, byte for byte, verified."),
    "verify": ("builder.cli.weights.verify", "Check every chunk in a store, or every byte of a folder."),
    "repair": ("builder.cli.weights.repair", "Replace only what is bad or missing."),
    "ls": ("builder.cli.weights.ls", "List the models in a store, or what one is made of."),
    "diff": ("builder.cli.weights.diff", "Compare two versions, or a source with what is stored."),
    "tag": ("builder.cli.weights.tag", "Give a version a name that stays, or take it away."),
    "copy": ("builder.cli.weights.copy", "Copy a model into another store; only what is missing there moves."),
    "gc": ("builder.cli.weights.gc", "Delete what no model needs; shows it first."),
    "sign": ("builder.cli.weights.sign", "Put a signature beside a model's manifest."),
    "keygen": ("builder.cli.weights.keygen", "Make a key pair that signs models."),
}


@click.group("weights", cls=LazyGroup, lazy=COMMANDS)
def command() -> None:
    """Push, pull, verify, repair, compare, copy and clean up model weights."""
