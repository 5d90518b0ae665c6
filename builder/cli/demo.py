"""`builder demo`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.common import Session, options

if TYPE_CHECKING:
    from builder.demo import DemoReport


@click.command()
@options
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True, help="Its folder."
)
def command(session: Session, folder: Path) -> None:
    """Run the whole chain on a small real model: no GPU, no account, no hub.

    A chat model is split into an S3 server on this machine, damaged and repaired; an image is built, started and
    load-tested; a node volume is baked and proven. Without Docker the load test runs in place; without root the volume
    is left out.
    """
    from builder import demo

    def credentials(found: Mapping[str, str]) -> None:
        os.environ.update(found)

    done = demo.run(
        folder,
        cache=demo.default_cache(),
        environ=os.environ,
        credentials=credentials,
        tell=session.say,
        progress=session.progress,
    )
    session.show(done.to_json(), _human(done))


def _human(done: DemoReport) -> str:
    from builder.cli.report import human
    from builder.units import format_seconds

    took = "  ".join(f"{name} {format_seconds(s)}" for name, s in done.seconds.items())
    left = [f"left out: {text}" for text in done.left_out]
    lines = ["", human(done.verify), "", f"stages: {took}", *left, f"report: {done.html}", "", "next, with your own model:"]
    lines += [f"  builder init {what}" for what in ("MODEL_FOLDER",)]
    lines += ["  builder weights push", "  builder build && builder verify"]
    return "\n".join(lines)
