"""builder cache capture and builder cache show: compile caches, as an artifact."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder import units
from builder.cli.common import Session, options
from builder.cli.weights.inputs import Inputs, store_options
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.transfer.compiled import Artifact

BELOW = "compile-cache"


@click.command()
@click.argument("container", required=False)
@click.option("--from", "root", type=click.Path(path_type=Path, file_okay=False), help="Instead of CONTAINER: a cache root.")
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False), help="Keep the artifact in this new folder.")
@click.option("--name", help="Name in the store; default: that of the model it served.")
@store_options
def capture(inputs: Inputs, container: str | None, root: Path | None, folder: Path | None, name: str | None) -> None:
    """Take what the engine in CONTAINER compiled, with the fingerprint of its chip and stack.

    CONTAINER: one that has served, running or stopped. The artifact goes to the store, as NAME@KEY, like weights; with --to
    into a folder, which image.compile_cache bakes into an image or a pod mounts. Without --store, to `compile-cache` below
    weights.store of builder.yaml; with --to alone, to no store.
    """
    from builder import pipeline

    if (container is None) == (root is None):
        raise ConfigError("which caches?", hint="give one of CONTAINER and --from DIR")
    to_store = bool(inputs.store_url or inputs.file or folder is None)
    store = _store(inputs) if to_store else None
    with tempfile.TemporaryDirectory(prefix="builder-capture-") as private:
        done = pipeline.capture_compiled(
            root,
            container or "",
            folder or Path(private, "artifact"),
            private=Path(private),
            store=store.store() if store else None,
            workers=inputs.engine(),
            name=name or "",
            progress=inputs.session.progress,
        )
    made, push = done
    data = made.to_json() | {"folder": str(folder or ""), "store": push.store if push else "", "ref": "", "digest": ""}
    lines = [_text(made)]
    if push:
        data |= {"ref": f"{push.name}@{made.fingerprint.short}", "digest": push.digest}
        lines.append(f"{push.store}  {data['ref']}  {push.digest}")
    inputs.session.show(data, "\n".join([*lines, *([str(folder)] if folder else [])]))


@click.command()
@options
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def show(session: Session, folder: Path) -> None:
    """Say what a captured compile cache in FOLDER is for, and check every byte of it. Exits 3 if it is damaged."""
    from builder.transfer import compiled

    found = compiled.load(folder)
    compiled.verify(found)
    fields = [f"{name}: {value}" for name, value in found.fingerprint.fields.items() if value]
    session.show(found.to_json(), "\n".join([_text(found), *fields]))


def _store(inputs: Inputs) -> Inputs:
    """The inputs with the store of compile caches: --store, or a place of its own below the weights' store."""
    if inputs.store_url:
        return inputs
    loaded = inputs.loaded()
    weights = loaded.spec.weights
    return replace(
        inputs,
        store_url=f"{loaded.store_url.rstrip('/')}/{BELOW}",
        endpoint_url=inputs.endpoint_url or weights.endpoint_url,
        region=inputs.region or weights.region,
    )


def _text(made: Artifact) -> str:
    return f"{made.fingerprint.key}\n{units.count(len(made.entries), 'file')}, {units.format_size(made.bytes)}"
