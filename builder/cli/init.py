"""`builder init`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.common import Session, options
from builder.errors import CapabilityError, ConfigError

if TYPE_CHECKING:
    from builder.models.inspect import Facts

SCHEMA = "./builder.schema.json"


@click.command()
@click.argument("source")
@options
@click.option("--store", default=None, help="Where the chunks go: a folder or s3://bucket/prefix. Default ./store.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("builder.yaml"), help="The file to write.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def command(session: Session, source: str, store: str | None, output: Path, force: bool) -> None:
    """Inspect SOURCE and write a commented builder.yaml.

    SOURCE is a model folder, a .gguf file, or hf://organisation/model. Only headers are read. A file that is there is
    not replaced without --force.
    """
    from builder.config import schema
    from builder.config.load import parse
    from builder.models.inspect import inspect
    from builder.models.source import ModelRef

    if output.exists() and not force:
        raise ConfigError(f"{output}: is there already", hint="--force replaces it, -o writes another")
    facts = inspect(ModelRef(source), token=os.environ.get("HF_TOKEN", ""))
    text = _text(facts, store or "./store", output)
    parse(text.encode(), str(output))  # what we write, we also accept
    _write(output, text)
    _write(output.parent / SCHEMA, schema.text())  # the editor header points to it
    if facts.note:
        session.say(f"note: {facts.note}; the file holds defaults")
    _show(session, facts, output)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.partial")
        part.write_text(text)
        part.replace(path)
    except OSError as exc:
        raise CapabilityError(f"{path}: cannot be written: {exc.strerror}", hint="-o names another file") from exc


def _text(facts: Facts, store: str, output: Path) -> str:
    from dataclasses import replace

    from builder import render
    from builder.image.recipes import VERSIONS

    hub = facts.source.startswith("hf://")
    source = facts.source if hub else _written(Path(facts.source).expanduser().resolve(), output.absolute().parent)
    return render.text(
        "builder.yaml.j2",
        facts=replace(facts, source=source),
        about=_about(facts),
        schema=SCHEMA,
        hub=hub,
        store=store,
        version=VERSIONS[facts.engine],
        volume=max(20, 8 * -(-facts.size // (4 << 30))),
    )


def _written(source: Path, folder: Path) -> str:
    """The model's path as it stands in the file: relative where it lies below or beside, else absolute."""
    relative = os.path.relpath(source, folder)
    return str(source) if relative.startswith("../../") else relative


def _about(facts: Facts) -> str:
    from builder import units

    parts = [facts.architecture]
    if facts.parameters:
        count = units.format_count(facts.parameters)
        parts.append(f"{count} parameters")
    parts.append(" + ".join(facts.dtypes))
    if facts.size:
        parts.append(f"{units.format_size(facts.size)} in {facts.files} file{'' if facts.files == 1 else 's'}")
    about = ", ".join(part for part in parts if part)
    return f"{facts.name}: {about}" if about else facts.name


def _show(session: Session, facts: Facts, output: Path) -> None:
    from dataclasses import asdict

    human = f"{output}: {_about(facts)}; engine {facts.engine}"
    human += "\n\nnext:\n  builder weights push\n  builder lock\n  builder build\n  builder verify"
    session.show({"path": str(output), "facts": asdict(facts)}, human)
