"""builder weights push | pull | verify | repair | ls.

What the command line leaves out comes from builder.yaml: the one -f names, or, where SOURCE or --store is missing, the one
in the current folder. With both given and no -f, no description is needed.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builder import units
from builder.cli.common import Session, file_option, options, table
from builder.errors import BuilderError, ConfigError, IntegrityError
from builder.format.manifest import NAME

if TYPE_CHECKING:
    from builder.config.load import Loaded
    from builder.config.spec import Spec
    from builder.engines.base import Engine
    from builder.models.source import ModelRef
    from builder.stores.base import Store
    from builder.transfer.faults import Fault
    from builder.weights.push import PushReport

CONCURRENCY = 8


@click.group("weights")
def command() -> None:
    """Push, pull, verify and repair model weights."""


@dataclass(frozen=True)
class Asked:
    """A model, and the token of its hub, which is never part of a value that is printed."""

    ref: ModelRef
    token: str = field(repr=False)


@dataclass
class Inputs:
    """The options shared by all weights commands, completed from builder.yaml."""

    session: Session
    store_url: str | None
    endpoint_url: str | None
    region: str | None
    concurrency: int
    file: Path | None
    _loaded: Loaded | None = None

    def loaded(self) -> Loaded:
        """The description. Raises ConfigError where there is none."""
        if self._loaded is None:
            self._loaded = self.session.load(self.file)
        return self._loaded

    def spec(self) -> Spec | None:
        """The description if one is meant: -f names it, or --store is left to it."""
        return self.loaded().spec if self.file or not self.store_url else None

    def store(self) -> Store:
        from builder.stores.open import open_store

        url, endpoint, region = self.store_url, self.endpoint_url, self.region
        if url is None:
            weights = self.loaded().spec.weights
            url, endpoint, region = self.loaded().store_url, endpoint or weights.endpoint_url, region or weights.region
        return open_store(url, endpoint_url=endpoint, region=region)

    def ref(self, ref: str | None) -> str:
        """What to read: REF, or the description's name, or "" for the only model in the store."""
        spec = self.spec()
        return ref or (spec.name if spec else "")

    def engine(self) -> Engine:
        from builder.engines.local import LocalEngine

        return LocalEngine(self.concurrency)

    def model(self, source: str | None, revision: str | None, include: tuple[str, ...], exclude: tuple[str, ...]) -> Asked:
        """The model that is meant. A SOURCE on the command line brings its own patterns and revision."""
        from builder.models.source import ModelRef

        if source is not None:
            return Asked(ModelRef(source, revision, include or ("*",), exclude), "")
        model = self.loaded().spec.model
        token = model.token.env if model.token else ""
        if token and token not in os.environ:
            raise ConfigError(f"{self.loaded().path}: model.token names {token}, which is not set", hint=f"export {token}=...")
        ref = ModelRef(
            self.loaded().model_source,
            revision or model.revision,
            include or model.include,
            exclude or model.exclude,
            token,
        )
        return Asked(ref, os.environ.get(token, ""))

    def lock(self, report: PushReport) -> BuilderError | None:
        """What the description's names meant, into builder.lock. Returns why it could not be written."""
        from builder.config import lock

        path = self.loaded().lock_path
        try:
            lock.update(path, "model", {"source": self.loaded().spec.model.source, "revision": report.revision})
            lock.update(path, "weights", {"name": report.name, "store": report.store, "manifest": report.digest})
        except BuilderError as exc:
            return exc
        return None


def store_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of Inputs and pass one first, in place of the Session."""

    @click.option("--store", metavar="URL", help="A folder or s3://bucket/prefix; default: weights.store of builder.yaml.")
    @click.option("--endpoint-url", metavar="URL", help="An S3-compatible server other than AWS.")
    @click.option("--region", help="The bucket's region.")
    @click.option("--concurrency", type=click.IntRange(1, 256), default=CONCURRENCY, show_default=True, help="Chunks at once.")
    @file_option
    @options
    @functools.wraps(function)
    def wrapped(
        session: Session,
        /,
        store: str | None,
        endpoint_url: str | None,
        region: str | None,
        concurrency: int,
        file: Path | None,
        **rest: Any,
    ) -> None:
        function(Inputs(session, store, endpoint_url, region, concurrency, file), **rest)

    return wrapped


def source_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add --revision, --include and --exclude."""
    for option in (
        click.option("--exclude", multiple=True, metavar="GLOB", help="Files to leave out; wins over --include."),
        click.option("--include", multiple=True, metavar="GLOB", help="Files to take; again for more."),
        click.option("--revision", help="Branch, tag or commit of a hub model."),
    ):
        function = option(function)
    return function


def _chunk_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    from builder.config.spec import MAX_CHUNK, MIN_CHUNK

    try:
        size = units.parse_size(value) if value else None
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    if size is not None and not MIN_CHUNK <= size <= MAX_CHUNK:
        raise click.BadParameter(f"{value}: expected 8MiB to 64MiB")
    return size


@command.command("push")
@click.argument("source", required=False)
@click.option("--name", help="Name of the model in the store; default: the source's own.")
@click.option("--chunk-size", callback=_chunk_size, metavar="SIZE", help="Target size of a chunk; default 16MiB.")
@click.option("--plain", is_flag=True, help="Also put the original files beside the chunks, for stock tools.")
@click.option("--dry-run", is_flag=True, help="Read and hash, ask the store, send nothing.")
@source_options
@store_options
def push_command(
    inputs: Inputs,
    source: str | None,
    name: str | None,
    chunk_size: int | None,
    plain: bool,
    dry_run: bool,
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
    report = pipeline.publish_weights(
        asked.ref,
        inputs.store(),
        inputs.engine(),
        name=name or (spec.name if spec else default_name(asked.ref.source)),
        chunk_bytes=chunk_size or (spec.weights.chunk_bytes if spec else split.TARGET_BYTES),
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


@command.command("pull")
@click.argument("ref", required=False)
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to make.")
@store_options
def pull_command(inputs: Inputs, ref: str | None, folder: Path) -> None:
    """Restore the model REF into a folder, byte for byte, verified; what an earlier run fetched is kept.

    REF: a name, name@revision or sha256:<hex>; default: the only model in the store.
    """
    from builder import pipeline

    source = inputs.store().source()
    wanted, progress = inputs.ref(ref), inputs.session.progress
    report = pipeline.restore_weights(source, wanted, folder, concurrency=inputs.concurrency, progress=progress)
    inputs.session.show(
        report.to_json(),
        f"{report.folder}  {report.digest}\n"
        f"fetched {report.fetched_chunks} chunks ({units.format_size(report.fetched_bytes)}), "
        f"{units.format_size(report.reused_bytes)} already there, in {units.format_seconds(report.seconds)}",
    )


@command.command("verify")
@click.argument("ref", required=False)
@click.option("--remote", is_flag=True, help="By HEAD requests alone: what the store itself says of each object.")
@click.option("--local", "folder", type=click.Path(path_type=Path), help="A restored folder instead of a store.")
@click.option("--deep", is_flag=True, help="With --local: also each chunk's sha256, not only its CRC64NVME.")
@store_options
def verify_command(inputs: Inputs, ref: str | None, remote: bool, folder: Path | None, deep: bool) -> None:
    """Check every chunk of REF in a store, or every byte of a restored folder. Exits 3 and names all that is bad."""
    if folder is not None:
        _only_local(ref, remote, inputs)
        _verify_folder(inputs, folder, deep)
        return
    from builder import pipeline

    progress = inputs.session.progress
    report = pipeline.check_weights(inputs.store(), inputs.ref(ref), inputs.engine(), remote=remote, progress=progress)
    if not report.ok:
        raise report.error()
    how = "by the store's own digests" if remote else "every byte read"
    if report.by_size:
        how += f"; of {report.by_size} the store keeps no digest, so only their size was compared"
    inputs.session.show(
        report.to_json(),
        f"{report.name}  {report.digest}\n"
        f"{report.chunks} chunks, {units.format_size(report.bytes)}: good ({how}), in {units.format_seconds(report.seconds)}",
    )


def _only_local(ref: str | None, remote: bool, inputs: Inputs) -> None:
    if ref or remote or inputs.store_url:
        raise ConfigError("--local checks a folder by the manifest inside it", hint="leave out REF, --remote and --store")


def _verify_folder(inputs: Inputs, folder: Path, deep: bool) -> None:
    from builder.transfer.check import check_folder
    from builder.transfer.faults import failure

    faults = check_folder(folder, deep=deep, workers=inputs.concurrency, progress=inputs.session.progress)
    data = {"folder": str(folder), "ok": not faults, "faults": [f.to_json() for f in faults]}
    if faults:
        found = failure(f"{folder}: {units.count(len(faults), 'fault')}", [(f, IntegrityError(f.found)) for f in faults])
        raise IntegrityError(found.message, hint=f"run `builder weights repair --local {folder} --store URL`", where=data)
    inputs.session.show(data, f"{folder}: good")


@command.command("repair")
@click.argument("ref", required=False)
@click.option("--from", "source", metavar="SOURCE", help="Where the model came from; default: model.source of builder.yaml.")
@click.option("--local", "folder", type=click.Path(path_type=Path), help="A restored folder, from the store.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent; write nothing.")
@source_options
@store_options
def repair_command(
    inputs: Inputs,
    ref: str | None,
    source: str | None,
    folder: Path | None,
    dry_run: bool,
    revision: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> None:
    """Replace only the bad or missing chunks of REF in a store, or of a restored folder."""
    if folder is not None:
        if ref or source or dry_run:
            raise ConfigError("--local repairs a folder from the store", hint="leave out REF, --from and --dry-run")
        _repair_folder(inputs, folder)
        return
    from builder import pipeline

    asked = inputs.model(source, revision, include, exclude)
    report = pipeline.repair_weights(
        asked.ref,
        inputs.store(),
        inputs.engine(),
        name=inputs.ref(ref),
        token=asked.token,
        dry_run=dry_run,
        progress=inputs.session.progress,
    )
    verb = "would put" if dry_run else "put"
    lines = [f"{report.name}  {report.digest}", *(f"  {fault}" for fault in report.bad)]
    lines.append(
        f"{verb} {report.repaired_chunks} of {report.chunks} chunks again "
        f"({units.format_size(report.repaired_bytes)}), in {units.format_seconds(report.seconds)}"
    )
    inputs.session.show(report.to_json(), "\n".join(lines))


def _repair_folder(inputs: Inputs, folder: Path) -> None:
    from builder.transfer.check import repair_folder

    report = repair_folder(folder, inputs.store().source(), workers=inputs.concurrency, progress=inputs.session.progress)
    inputs.session.show(
        report.to_json(),
        f"{report.folder}  {report.digest}\n{_lines(report.faults)}"
        f"fetched {report.fetched_chunks} chunks ({units.format_size(report.fetched_bytes)})",
    )


def _lines(faults: tuple[Fault, ...]) -> str:
    return "".join(f"  {fault}\n" for fault in faults)


@command.command("ls")
@store_options
def ls_command(inputs: Inputs) -> None:
    """List the models in a store."""
    from builder.weights.listing import ls

    entries = list(ls(inputs.store()))
    rows = [["REF", "DIGEST", "SIZE", "FILES", "CHUNKS", "SOURCE"]]
    for e in entries:
        if e.error:
            rows.append([e.ref, "unreadable", "-", "-", "-", e.error])
        else:
            origin = e.source + (f"@{e.revision[:12]}" if e.revision else "")
            rows.append([e.ref, e.digest[:19], units.format_size(e.bytes), str(e.files), str(e.chunks), origin])
    human = table(rows, right=(2, 3, 4)) if entries else "no models here"
    inputs.session.show({"models": [e.to_json() for e in entries]}, human)


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
