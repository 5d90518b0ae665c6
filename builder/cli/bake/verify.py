"""`builder bake verify`."""

from __future__ import annotations

from pathlib import Path

import click

from builder.cli.bake.evidence import evidence, verified
from builder.cli.common import Session, options


@click.command("verify")
@click.argument("image", type=click.Path(path_type=Path), metavar="DISK")
@options
@click.option("--run", "run", default=None, metavar="ARGS", help="Arguments for the image's entry point. Default: --help.")
def command(session: Session, image: Path, run: str | None) -> None:
    """Prove that a copy of DISK starts its images with no pull; exit 7 with every finding if not."""
    report = verified(session, image, run)
    session.show(report.to_json(), evidence(report))
