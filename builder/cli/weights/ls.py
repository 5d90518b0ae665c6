"""builder weights ls."""

from __future__ import annotations

import click

from builder import units
from builder.cli.common import table
from builder.cli.weights.inputs import Inputs, store_options


@click.command("ls")
@store_options
def command(inputs: Inputs) -> None:
    """List the models in a store."""
    from builder.weights.listing import ls

    entries = list(ls(inputs.store()))
    rows = [["REF", "DIGEST", "SIZE", "FILES", "CHUNKS", "SOURCE"]]
    for e in entries:
        if e.error:
            rows.append([e.ref, "unreadable", "-", "-", "-", e.error])
        else:
            origin = e.source + (f"@{e.revision[:12]}" if e.revision else "")
            rows.append([e.ref, e.digest[:19], units.format_size(e.bytes), str(e.files), str(e.chunks), origin])
    human = table(rows, right=(2, 3, 4)) if entries else "no models here"
    inputs.session.show({"models": [e.to_json() for e in entries]}, human)
