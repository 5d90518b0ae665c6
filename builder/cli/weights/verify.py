"""builder weights verify: a store, or a restored folder."""

from __future__ import annotations

from pathlib import Path

import click

from builder import units
from builder.cli.weights.inputs import Inputs, store_options
from builder.errors import ConfigError, IntegrityError


@click.command("verify")
@click.argument("ref", required=False)
@click.option("--remote", is_flag=True, help="By HEAD requests alone: what the store itself says of each object.")
@click.option("--local", "folder", type=click.Path(path_type=Path), help="A restored folder instead of a store.")
@click.option("--deep", is_flag=True, help="With --local: also each chunk's sha256, not only its CRC64NVME.")
@store_options
def command(inputs: Inputs, ref: str | None, remote: bool, folder: Path | None, deep: bool) -> None:
    """Check every chunk of REF in a store, or every byte of a restored folder. Exits 3 and names all that is bad."""
    if folder is not None:
        _only_local(ref, remote, inputs)
        _verify_folder(inputs, folder, deep)
        return
    from builder import pipeline

    progress = inputs.session.progress
    report = pipeline.check_weights(inputs.store(), inputs.ref(ref), inputs.engine(), remote=remote, progress=progress)
    if not report.ok:
        raise report.error()
    how = "by the store's own digests" if remote else "every byte read"
    if report.by_size:
        how += f"; of {report.by_size} the store keeps no digest, so only their size was compared"
    inputs.session.show(
        report.to_json(),
        f"{report.name}  {report.digest}\n"
        f"{report.chunks} chunks, {units.format_size(report.bytes)}: good ({how}), in {units.format_seconds(report.seconds)}",
    )


def _only_local(ref: str | None, remote: bool, inputs: Inputs) -> None:
    if ref or remote or inputs.store_url:
        raise ConfigError("--local checks a folder by the manifest inside it", hint="leave out REF, --remote and --store")


def _verify_folder(inputs: Inputs, folder: Path, deep: bool) -> None:
    from builder.transfer.check import check_folder
    from builder.transfer.faults import failure

    faults = check_folder(folder, deep=deep, workers=inputs.concurrency, progress=inputs.session.progress)
    data = {"folder": str(folder), "ok": not faults, "faults": [f.to_json() for f in faults]}
    if faults:
        found = failure(f"{folder}: {units.count(len(faults), 'fault')}", [(f, IntegrityError(f.found)) for f in faults])
        raise IntegrityError(found.message, hint=f"run `builder weights repair --local {folder} --store URL`", where=data)
    inputs.session.show(data, f"{folder}: good")
