"""builder weights verify: a store, or a restored folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder import units
from builder.cli.weights.inputs import Inputs, store_options
from builder.cli.weights.signatures import require_option, signed_ref
from builder.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from builder.weights.plain import PlainReport


@click.command("verify")
@click.argument("ref", required=False)
@click.option("--remote", is_flag=True, help="By HEAD requests alone: what the store itself says of each object.")
@click.option("--plain", is_flag=True, help="The original files under plain/ instead of the chunks.")
@click.option("--local", "folder", type=click.Path(path_type=Path), help="A restored folder instead of a store.")
@click.option("--deep", is_flag=True, help="With --local: also each chunk's sha256, not only its CRC64NVME.")
@require_option
@store_options
def command(
    inputs: Inputs, ref: str | None, remote: bool, plain: bool, folder: Path | None, deep: bool, trusted: tuple[str, ...]
) -> None:
    """Check every chunk of REF in a store, or every byte of a restored folder. Exits 3 and names all that is bad."""
    if folder is not None:
        _only_local(ref, remote or plain, inputs, trusted)
        _verify_folder(inputs, folder, deep)
        return
    from builder import pipeline

    progress, wanted = inputs.session.progress, signed_ref(inputs, inputs.ref(ref), trusted)
    if plain:
        _show_plain(
            inputs,
            pipeline.check_plain(inputs.store(read_only=True), wanted, inputs.engine(), remote=remote, progress=progress),
        )
        return
    report = pipeline.check_weights(inputs.store(read_only=True), wanted, inputs.engine(), remote=remote, progress=progress)
    if not report.ok:
        raise report.error()
    how = "every byte read" if not remote else "sizes" if not report.by_digest else "the store's own digests"
    inputs.session.show(
        report.to_json(),
        f"{report.name}  {report.digest}\n{units.count(report.chunks, 'chunk')}, {units.format_size(report.bytes)}: "
        f"{'good' if report.by_digest else 'there'} ({how}), in {units.format_seconds(report.seconds)}"
        + _unproven(report.by_size, report.chunks, "chunks", report.endpoint or report.store),
    )


def _unproven(by_size: int, of: int, what: str, store: str) -> str:
    """What a remote check could not prove, and how to."""
    if not by_size:
        return ""
    return (
        f"\n{by_size:,} of {of:,} {what}: {store} tells no digest, so only their size was compared; "
        "run without --remote to read them"
    )


def _show_plain(inputs: Inputs, report: PlainReport) -> None:
    if not report.ok:
        raise report.error()
    ways = {"by the store's own digest": report.by_digest, "read": report.by_read, "by size": report.by_size}
    how = ", ".join(f"{n:,} {way}" for way, n in ways.items() if n)
    inputs.session.show(
        report.to_json(),
        f"{report.store}/{report.prefix}  {report.digest}\n{units.count(report.files, 'file')}, "
        f"{units.format_size(report.bytes)}: {'there' if report.by_size else 'good'} ({how}), "
        f"in {units.format_seconds(report.seconds)}" + _unproven(report.by_size, report.files, "files", report.store),
    )


def _only_local(ref: str | None, remote: bool, inputs: Inputs, trusted: tuple[str, ...]) -> None:
    if ref or remote or inputs.store_url or trusted:
        hint = "leave out REF, --remote, --plain, --store and --require-signature"
        raise ConfigError("--local checks a folder by the manifest inside it", hint=hint)


def _verify_folder(inputs: Inputs, folder: Path, deep: bool) -> None:
    from builder.transfer.check import check_folder
    from builder.transfer.faults import failure

    faults = check_folder(folder, deep=deep, workers=inputs.workers, memory=inputs.memory, progress=inputs.session.progress)
    data = {"folder": str(folder), "ok": not faults, "faults": [f.to_json() for f in faults]}
    if faults:
        found = failure(f"{folder}: {units.count(len(faults), 'fault')}", [(f, IntegrityError(f.found)) for f in faults])
        raise IntegrityError(found.message, hint=f"run `builder weights repair --local {folder} --store URL`", where=data)
    inputs.session.show(data, f"{folder}: good")
