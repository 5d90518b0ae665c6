"""builder weights ls: the models in a store, or what one of them is made of."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from builder import units
from builder.cli.common import table
from builder.cli.weights.inputs import Inputs, store_options
from builder.errors import printable

if TYPE_CHECKING:
    from builder.weights.listing import Description, Entry


@click.command("ls")
@click.argument("ref", required=False)
@store_options
def command(inputs: Inputs, ref: str | None) -> None:
    """List the models in a store, or the files and tensors of REF."""
    from builder.weights import listing

    if ref:
        found = listing.describe(inputs.store(read_only=True), ref)
        inputs.session.show(found.to_json(), _described(found))
        return
    entries = list(listing.ls(inputs.store(read_only=True)))
    inputs.session.show({"models": [e.to_json() for e in entries]}, _listed(entries))


def _listed(entries: list[Entry]) -> str:
    if not entries:
        return "no models here"
    rows = [["REF", "VERSION", "TAGS", "SIZE", "FILES", "CHUNKS", "PUSHED", "SOURCE"]]
    for e in entries:
        tags = ", ".join(_short(tag) for tag in e.tags)
        if e.error:
            rows.append([printable(e.ref), e.digest[:19] or "-", printable(tags), "-", "-", "-", "unreadable", e.error])
            continue
        pushed = time.strftime("%Y-%m-%d %H:%MZ", time.gmtime(e.pushed))
        signed = " (signed)" if e.signed else ""
        size = units.format_size(e.bytes)
        rows.append([e.ref, e.digest[:19] + signed, tags, size, f"{e.files:,}", f"{e.chunks:,}", pushed, printable(e.source)])
    return table(rows, right=(3, 4, 5))


def _short(tag: str) -> str:
    """A commit's first digits, as git shows it; any other tag whole."""
    return tag[:12] if len(tag) == 40 and all(c in "0123456789abcdef" for c in tag) else tag


def _described(found: Description) -> str:
    m = found.manifest
    files = [["FILE", "SIZE", "CUT AS", "CHUNKS", "TENSORS"]]
    for f in m.files:
        files.append([printable(f.path), units.format_size(f.size), f.mode, f"{len(f.chunks):,}", f"{len(f.tensors):,}"])
    lines = [
        f"{m.name}  {m.digest}",
        f"{units.format_size(m.size)}, {units.count(len(m.order), 'chunk')}, from {printable(m.source)}"
        + (f" at {printable(m.revision)}" if m.revision else "")
        + f", by {printable(m.tool)}",
        "",
        table(files, right=(1, 3, 4)),
    ]
    if found.groups:
        lines += ["", table([["NEEDED", "TENSORS", "SIZE"], *_groups(found)], right=(1, 2))]
    return "\n".join(lines)


def _groups(found: Description) -> list[list[str]]:
    """The groups in the order of need, the layers together."""
    totals: dict[str, list[int]] = {}
    for group in found.groups:
        parts = group.name.split(".")
        what = ("experts of layers" if parts[-1] == "expert" else "layers") if parts[0] == "layer" else group.name
        total = totals.setdefault(printable(what), [0, 0])
        total[0] += group.tensors
        total[1] += group.bytes
    return [[what, f"{tensors:,}", units.format_size(size)] for what, (tensors, size) in totals.items()]
