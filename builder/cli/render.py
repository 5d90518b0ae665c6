"""`builder render`."""

from __future__ import annotations

import difflib
from pathlib import Path

import click

from builder.cli.common import Session, file_option, options
from builder.errors import ClaimError


@click.command()
@options
@file_option
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Write the whole build folder here.")
@click.option("--check", type=click.Path(path_type=Path), default=None, help="Compare with this file; exit 7 if it differs.")
def command(session: Session, file: Path | None, out: Path | None, check: Path | None) -> None:
    """Print the Dockerfile of the image, without building it."""
    from builder import pipeline
    from builder.config import lock

    loaded = session.load(file)
    manifest = str(lock.section(loaded.lock_path, "weights").get("manifest", ""))
    text = pipeline.render_image(loaded, manifest)
    if check is not None:
        _compare(check, text)
        session.show({"dockerfile": text, "check": "same"}, f"{check}: up to date")
        return
    if out is None:
        session.show({"dockerfile": text}, text.removesuffix("\n"))
        return
    from builder.image import context, locked, machine

    pins = locked.read(loaded.folder, loaded.spec)
    wheels, baked = machine.wheelhouse(loaded), pipeline.baked_cache(loaded, manifest)
    made = context.write(out, loaded.spec, pins, manifest=manifest, wheelhouse=wheels, baked=baked)
    session.show(made.to_json(), f"{out}: {len(made.files)} files, sha256:{made.digest}")


def _compare(path: Path, text: str) -> None:
    found = path.read_text() if path.is_file() else ""
    if found != text:
        lines = difflib.unified_diff(found.splitlines(), text.splitlines(), str(path), "rendered", lineterm="")
        raise ClaimError(f"{path}: not what builder.yaml renders\n" + "\n".join(lines), hint=f"builder render >{path}")
