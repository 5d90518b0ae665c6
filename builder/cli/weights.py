"""builder weights push | pull | verify | repair | ls."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from builder import units
from builder.cli.common import Session, file_option, options, table
from builder.config.load import FILE
from builder.errors import ConfigError
from builder.format.manifest import NAME, is_digest

if TYPE_CHECKING:
    from builder.engines.base import Engine
    from builder.models.source import ModelRef, ModelSnapshot
    from builder.stores.base import Store

P = ParamSpec("P")
CONCURRENCY = 8


@click.group("weights")
def command() -> None:
    """Push, pull, verify and repair model weights."""


@dataclass(frozen=True)
class Where:
    """Which store and how hard, from the options and, for what they leave out, from builder.yaml."""

    store: str | None
    endpoint_url: str | None
    region: str | None
    concurrency: int
    file: Path | None


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return units.parse_size(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


def store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --store, --endpoint-url, --region, --concurrency and -f; pass a Where as `where`."""
    import functools

    @click.option("--store", metavar="URL", help="A folder or s3://bucket/prefix; default: weights.store of builder.yaml.")
    @click.option("--endpoint-url", metavar="URL", help="An S3-compatible server other than AWS.")
    @click.option("--region", help="The bucket's region.")
    @click.option("--concurrency", type=click.IntRange(1, 256), default=CONCURRENCY, show_default=True, help="Chunks at once.")
    @file_option
    @functools.wraps(command)
    def wrapped(*args: Any, store: str | None, endpoint_url: str | None, region: str | None, concurrency: int,
                file: Path | None, **kwargs: Any) -> None:  # fmt: skip
        command(*args, where=Where(store, endpoint_url, region, concurrency, file), **kwargs)

    return wrapped


dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be sent; write nothing.")


@command.command("push")
@click.argument("source", required=False)
@click.option("--name", help="Name of the model in the store; default: the source's own name.")
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option("--include", multiple=True, metavar="GLOB", help="Files to take; again for more.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Files to leave out; wins over --include.")
@click.option("--chunk-size", callback=_size, metavar="SIZE", help="Target size of a chunk, 8MiB to 64MiB; default 16MiB.")
@dry_run_option
@store_options
@options
def push_command(
    session: Session, source: str | None, name: str | None, revision: str | None, include: tuple[str, ...],
    exclude: tuple[str, ...], chunk_size: int | None, dry_run: bool, where: Where,
) -> None:  # fmt: skip
    """Upload SOURCE (a folder, a file, hf://organisation/model) in verified chunks; only what is missing is sent."""
    from builder.config.spec import MAX_CHUNK, MIN_CHUNK
    from builder.weights import push, split

    if chunk_size is not None and not MIN_CHUNK <= chunk_size <= MAX_CHUNK:
        raise ConfigError(f"--chunk-size {chunk_size} bytes; expected 8MiB to 64MiB")
    loaded = session.load(where.file) if source is None or _described(where) else None
    if loaded and "plain" in loaded.spec.weights.publish:
        raise ConfigError(f"{loaded.path}: weights.publish: plain is not offered yet", hint="write publish: [chunks]")
    ref = _model_ref(session, source, revision, include, exclude, where)
    snapshot = _resolve(ref)
    target = chunk_size or (loaded.spec.weights.chunk_bytes if loaded else split.TARGET_BYTES)
    plan = split.plan(snapshot, chunk_bytes=target)
    report = push.push(
        plan, _store(session, where), _engine(where), name=name or (loaded.spec.name if loaded and source is None else default_name(snapshot.source)),
        progress=session.progress, dry_run=dry_run,
    )
    session.show(report.to_json(), _pushed(report.to_json()))


def _pushed(r: dict[str, Any]) -> str:
    verb = "would send" if r["dry_run"] else "sent"
    rate = f", {units.format_size(r['bytes'] / r['seconds'])}/s" if r["seconds"] else ""
    return (
        f"{r['name']}  {r['digest']}\n"
        f"{r['files']} files, {units.format_size(r['bytes'])}, {r['chunks']} chunks: "
        f"{verb} {r['sent_chunks']} ({units.format_size(r['sent_bytes'])}), "
        f"{r['reused_chunks']} already there ({units.format_size(r['reused_bytes'])}), "
        f"in {units.format_seconds(r['seconds'])}{rate}"
    )
