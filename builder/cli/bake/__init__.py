"""builder bake: one file per command, imported when it runs."""

from __future__ import annotations

import click

from builder.cli.lazy import LazyGroup

COMMANDS = {
    "disk": ("builder.cli.bake.disk", "Bake a raw disk with images and small weights."),
    "verify": ("builder.cli.bake.verify", "Prove that a copy of a disk starts its images with no pull."),
    "specs": ("builder.cli.bake.specs", "Render again, from the record of a disk, what a cluster needs to use it."),
    "hot": ("builder.cli.bake.hot", "Find the blocks that a start reads, and write the program that reads them first."),
    "lint": ("builder.cli.bake.lint", "Find what would make a node ignore, lose or pull again what was baked."),
}


@click.group("bake", cls=LazyGroup, lazy=COMMANDS)
def command() -> None:
    """Write and verify a pre-seeded node volume: images unpacked and pinned, so that a node starts them with no pull."""
