"""`builder image`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli import image_sbom
from builder.cli.common import Session, options, table
from builder.units import format_size

if TYPE_CHECKING:
    from builder.image.inspect import ImageReport


@click.group()
def command() -> None:
    """Look into an image: what fills it, and whether it holds what it must not."""


@command.command()
@options
@click.argument("image")
def report(session: Session, image: str) -> None:
    """Layers of IMAGE, a reference or an archive, with their sizes and what fills them."""
    from builder.image import inspect

    with tempfile.TemporaryDirectory(prefix="builder-image-") as work:
        found = inspect.report(_archive(image, Path(work)), image)
    session.show(found.to_json(), _human(found))


@command.command()
@options
@click.argument("image")
def scan(session: Session, image: str) -> None:
    """Search every layer, the configuration and the history of IMAGE for secrets and weights; exit 7 if there are any."""
    from builder.image import inspect

    with tempfile.TemporaryDirectory(prefix="builder-image-") as work:
        findings = inspect.scan(_archive(image, Path(work)))
    inspect.require_clean(findings, image)
    session.show({"image": image, "findings": []}, f"{image}: no secrets and no weights found")


command.add_command(image_sbom.command, "sbom")


def _archive(image: str, work: Path) -> Path:
    """IMAGE itself where it is a file, else what the engine saves."""
    from builder.image import engine

    if Path(image).is_file():
        return Path(image)
    archive = work / "image.tar"
    engine.save(image, archive)
    return archive


def _human(found: ImageReport) -> str:
    head = [["layer", "compressed", "unpacked", "files", "made by"]]
    rows = [
        [one.digest[7:19], format_size(one.compressed), format_size(one.unpacked), str(one.files), one.made_by[:70]]
        for one in found.layers
    ]
    causes = [["cause", "unpacked"]] + [[name, format_size(size)] for name, size in list(found.causes.items())[:12]]
    total = f"{format_size(found.compressed)} compressed, {format_size(found.unpacked)} unpacked, user {found.user or 'root'}"
    return "\n\n".join(
        [f"{found.reference}  {found.digest}", table(head + rows, right=(1, 2, 3)), table(causes, right=(1,)), total]
    )
