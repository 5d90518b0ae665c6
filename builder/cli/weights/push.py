"""builder weights push."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

import click

from builder import units
from builder.cli.common import cache_folder
from builder.cli.weights.inputs import Inputs, engine_option, source_options, store_options
from builder.errors import ConfigError
from builder.format.manifest import NAME


def _chunk_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if not value:
        return None
    from builder.config.spec import MAX_CHUNK, MIN_CHUNK

    try:
        size = units.parse_size(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    if not MIN_CHUNK <= size <= MAX_CHUNK:
        raise click.BadParameter(f"{value}: expected 8MiB to 64MiB")
    return size


chunk_size_option = click.option(
    "--chunk-size", callback=_chunk_size, metavar="SIZE", help="Target size of a chunk; default 16MiB."
)


@click.command("push")
@click.argument("source", required=False)
@click.option("--name", help="Name of the model in the store; default: the source's own.")
@chunk_size_option
@click.option("--plain", is_flag=True, help="Also put the original files beside the chunks, for stock tools.")
@click.option("--dry-run", is_flag=True, help="Read and hash, ask the store, send nothing.")
@engine_option
@source_options
@store_options
def command(
    inputs: Inputs,
    source: str | None,
    name: str | None,
    chunk_size: int | None,
    plain: bool,
    dry_run: bool,
    cluster: str,
    revision: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> None:
    """Upload SOURCE in verified chunks; only what the store lacks is sent.

    SOURCE: a folder, a file, or hf://organisation/model[@revision]; default: model.source of builder.yaml.
    """
    from builder import pipeline
    from builder.weights import split

    spec = inputs.loaded().spec if source is None else inputs.spec()
    asked = inputs.model(source, revision, include, exclude)
    # Ray prints to stdout, which is for the result.
    with contextlib.redirect_stdout(sys.stderr) if cluster else contextlib.nullcontext():
        report = pipeline.publish_weights(
            asked.ref,
            inputs.store(),
            inputs.engine(cluster),
            name=name or (spec.name if spec else default_name(asked.ref.source)),
            chunk_bytes=chunk_size or (spec.weights.chunk_bytes if spec else split.TARGET_BYTES),
            memory=inputs.memory,
            index=cache_folder("index"),
            token=asked.token,
            plain=plain or bool(spec and "plain" in spec.weights.publish),
            dry_run=dry_run,
            progress=inputs.session.progress,
        )
    # The lock speaks of what the description names, so a push that overrode a part of it leaves the lock alone.
    described = not (source or name or dry_run or revision or include or exclude or inputs.store_url)
    failed = inputs.lock(report) if described else None
    rate = f", {units.format_size(report.bytes / report.seconds)}/s" if report.seconds else ""
    inputs.session.conclude(
        report.to_json(),
        f"{report.name}  {report.digest}\n"
        f"{report.files} files, {units.format_size(report.bytes)}, {report.chunks} chunks: "
        f"{'would send' if dry_run else 'sent'} {report.sent_chunks} ({units.format_size(report.sent_bytes)}), "
        f"{report.reused_chunks} already there, in {units.format_seconds(report.seconds)}{rate}",
        failed,
    )


def default_name(source: str) -> str:
    """A model's name from its source: the last part of it, without a weight file's suffix.

    >>> default_name("hf://org/Llama-3 8B@v1"), default_name("SmolLM2.Q4_1.gguf"), default_name("m-00001-of-00003.gguf")
    ('Llama-3-8B', 'SmolLM2.Q4_1', 'm')
    """
    last = source.partition("@")[0].rpartition("/")[2] if "://" in source else Path(source).expanduser().resolve().name
    stem = re.sub(r"\.(gguf|safetensors|bin|pt|pth|onnx)\Z", "", last)
    stem = re.sub(r"-\d{5}-of-\d{5}\Z", "", stem)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:128]
    if not NAME.match(name):
        raise ConfigError(f"{source}: no model name can be made of it", hint="give one with --name")
    return name
