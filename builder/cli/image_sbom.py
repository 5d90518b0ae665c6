"""`builder image sbom`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.common import Session, options
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.image.lock import Lock


@click.command()
@options
@click.argument("image")
@click.option(
    "--lock",
    "lock_file",
    type=click.Path(path_type=Path),
    default=None,
    help="requirements.lock of the image: hashes, and a check.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="File to write; default: standard output.")
def command(session: Session, image: str, lock_file: Path | None, output: Path | None) -> None:
    """Write a CycloneDX SBOM of IMAGE, a reference of the engine, an OCI archive or an OCI layout.

    A wheel that is in the lock but not in the image, or the other way round, is a warning here and an error of `builder build`.
    """
    from builder.image import attest

    lock = _lock(lock_file)
    with tempfile.TemporaryDirectory(prefix="builder-image-") as work:
        place, reference = _find(image, Path(work))
        found = attest.describe(place, reference, lock=lock)
    for one in found.mismatches:
        session.say(f"warning: {one}")
    if output is None:
        session.show(json.loads(found.sbom), found.sbom.removesuffix("\n"))
        return
    try:
        output.write_text(found.sbom)
    except OSError as exc:
        raise ConfigError(f"{output}: cannot be written: {exc.strerror}", hint="name another file") from exc
    human = f"{output}: {found.components} components, {found.unowned} files of no package"
    session.show({"path": str(output), **found.to_json()}, human)


def _find(image: str, work: Path) -> tuple[Path, str]:
    """Where it lies as OCI, and what it is called: a file's name says nothing about an image."""
    from builder.image import engine

    place = Path(image)
    if place.is_file() or (place / "index.json").is_file():
        return place, ""
    folder = work / "oci"
    engine.export_oci(image, folder)
    return folder, image


def _lock(path: Path | None) -> Lock | None:
    from builder.image import lock

    if path is None:
        return None
    try:
        return lock.read(path.read_text(), str(path))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}", hint="`builder lock` writes it") from exc
