"""builder weights pull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder import units
from builder.cli.cache import budget
from builder.cli.weights.inputs import Inputs, store_options
from builder.cli.weights.signatures import require_option, signed_ref
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.transfer.cache import Budget


@click.command("pull")
@click.argument("ref", required=False)
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False), help="Folder to make.")
@click.option("--cache", "root", type=click.Path(path_type=Path, file_okay=False), help="Instead: this node's models root.")
@click.option("--cache-size", callback=budget, metavar="SIZE", help="What the root may take (200GiB, 80%): unused models go.")
@click.option("--trust-store", is_flag=True, help="CRC64NVME alone, not sha256: where nobody else can write to the store.")
@require_option
@store_options
def command(
    inputs: Inputs,
    ref: str | None,
    folder: Path | None,
    root: Path | None,
    cache_size: Budget | None,
    trust_store: bool,
    trusted: tuple[str, ...],
) -> None:
    """Restore the model REF into a folder, byte for byte, verified; what an earlier run fetched is kept.

    REF: a name, name@revision or sha256:<hex>; default: the only model in the store.

    With --cache the folder is the model's own in a models root, fetched once per node whoever asks. It is in use while
    this command runs: a later user takes a lease of its own (docs/cache.md).
    """
    from builder import pipeline
    from builder.transfer.restore import Transfer

    if cache_size and root is None:
        raise ConfigError("--cache-size is the size of a models root", hint="give it with --cache ROOT")
    if (root is None) == (folder is None):
        raise ConfigError("where to?", hint="give one of --to DIR and --cache ROOT")
    how = Transfer(inputs.concurrency, inputs.memory, sha256=False if trust_store else None)
    source, wanted, progress = inputs.source(), signed_ref(inputs, inputs.ref(ref), trusted), inputs.session.progress
    if folder is not None:
        report = pipeline.restore_weights(source, wanted, folder, how=how, progress=progress)
    elif root is not None:
        with pipeline.cache_weights(source, wanted, root, budget=cache_size, how=how, progress=progress) as held:
            report = held.report
    inputs.session.show(
        report.to_json(),
        f"{report.folder}  {report.digest}\n"
        f"fetched {report.fetched_chunks} chunks ({units.format_size(report.fetched_bytes)}), "
        f"{units.format_size(report.reused_bytes)} already there, in {units.format_seconds(report.seconds)}",
    )
