"""`builder build`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from builder import units
from builder.cli.common import Session, file_option, options


@click.command()
@options
@file_option
@click.option("--tag", default=None, help="Reference of the image; default: image.repository:image.tag.")
@click.option("--no-cache", is_flag=True, help="Run every step again.")
@click.option("--oci", type=click.Path(path_type=Path), default=None, help="Also write an OCI layout here, for `builder bake`.")
@click.option("--update-base", is_flag=True, help="Accept another base image than builder.lock pins.")
def command(session: Session, file: Path | None, tag: str | None, no_cache: bool, oci: Path | None, update_base: bool) -> None:
    """Build the serving image with BuildKit, and check that it holds no secret and no weights."""
    from builder import pipeline
    from builder.config import lock

    loaded = session.load(file)
    manifest = str(lock.section(loaded.lock_path, "weights").get("manifest", ""))
    if oci is not None:
        oci.mkdir(parents=True, exist_ok=True)  # refused now, not after a whole build
    locked = lock.section(loaded.lock_path, "image")
    pinned = str(locked.get("base_digest", "")) if locked.get("base") == loaded.spec.image.base and not update_base else ""
    built = pipeline.build_image(
        loaded,
        manifest=manifest,
        tag=tag,
        no_cache=no_cache,
        pinned_base=pinned,
        oci=oci,
        environ=os.environ,
        progress=session.progress,
    )
    values = {"base": built.base, "base_digest": built.base_digest, "digest": built.digest, "reference": built.reference}
    lock.update(loaded.lock_path, "image", values)
    human = f"{built.reference}  {built.digest}\n{units.format_size(built.size)} in {len(built.layers)} layers"
    session.show(built.to_json(), f"{human}, {units.format_seconds(built.seconds)}")
