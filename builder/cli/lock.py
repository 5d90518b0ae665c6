"""`builder lock`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.common import Session, file_option, options, table
from builder.errors import CapabilityError, ClaimError
from builder.units import format_size

if TYPE_CHECKING:
    from builder.image.lock import Lock


@click.command()
@options
@file_option
@click.option("--stdout", is_flag=True, help="Print the lock instead of writing it.")
@click.option("--check", is_flag=True, help="Write nothing; exit 7 if the lock would change.")
def command(session: Session, file: Path | None, stdout: bool, check: bool) -> None:
    """Resolve every wheel of the image, and write requirements.lock: versions, hashes, layers.

    A build installs only what stands there.
    """
    from builder import pipeline
    from builder.image import lock, locked

    loaded = session.load(file)
    path = loaded.folder / locked.FILE
    found = pipeline.lock_image(loaded, os.environ)
    text = lock.text(found)
    if stdout:
        session.show(found.to_json() | {"lock": text}, text.removesuffix("\n"))
        return
    same = path.is_file() and path.read_text() == text
    if check and not same:
        raise ClaimError(f"{path}: not what builder.yaml resolves to now", hint="run `builder lock`, and read the difference")
    if not same:
        _write(path, text)
    session.show(
        found.to_json() | {"path": str(path), "changed": not same},
        _human(found, f"{path}: {'unchanged' if same else 'written'}"),
    )


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.partial")
    try:
        part.write_text(text)
        part.replace(path)
    except OSError as exc:
        raise CapabilityError(f"{path}: cannot be written: {exc.strerror}", hint="--stdout prints it") from exc


def _human(lock: Lock, head: str) -> str:
    rows = [["layer", "wheels", "download", ""]]
    for layer in lock.layers:
        first = ", ".join(wheel.pin for wheel in layer.wheels[:2]) + (", ..." if len(layer.wheels) > 2 else "")
        rows.append([layer.name, str(len(layer.wheels)), format_size(layer.size), first])
    total = f"{len(lock.wheels)} wheels, {format_size(sum(layer.size for layer in lock.layers))}"
    left = [f"left out: {one}" for one in lock.without]
    tools = [f"for the build alone: {wheel.pin}" for tool in lock.tools for wheel in tool.wheels]
    return "\n".join([head, "", table(rows, right=(1, 2)), "", total, *left, *tools])
