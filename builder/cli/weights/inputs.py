"""What the weights commands share: their options, completed from builder.yaml.

What the command line leaves out comes from builder.yaml: the one -f names, or, where SOURCE or --store is missing, the one
in the current folder. With both given and no -f, no description is needed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builder import units
from builder.cli.common import Session, file_option, options
from builder.errors import BuilderError, ConfigError

if TYPE_CHECKING:
    from builder.config.load import Loaded
    from builder.config.spec import Spec
    from builder.engines.base import Engine
    from builder.models.source import ModelRef
    from builder.stores.base import Store
    from builder.transfer.source import Source
    from builder.weights.push import PushReport

CONCURRENCY = 8
MEMORY = 256 << 20


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
    concurrency: int | None
    file: Path | None
    memory: int = MEMORY
    _loaded: Loaded | None = None

    def loaded(self) -> Loaded:
        """The description. Raises ConfigError where there is none."""
        if self._loaded is None:
            self._loaded = self.session.load(self.file)
        return self._loaded

    def spec(self) -> Spec | None:
        """The description if one is meant: -f names it, or --store is left to it."""
        return self.loaded().spec if self.file or not self.store_url else None

    @property
    def workers(self) -> int:
        return self.concurrency or CONCURRENCY

    def store(self, *, read_only: bool = False) -> Store:
        """read_only: for a command that writes nothing, also one that cannot be written."""
        from builder.stores.open import open_store

        url, endpoint, region = self._address()
        return open_store(url, endpoint_url=endpoint, region=region, read_only=read_only)

    def source(self) -> Source:
        """The store, for reading alone. Where the environment says all there is to say, boto3 is not asked: it takes a
        quarter of a second to load, and would find the same keys.
        """
        url, endpoint, region = self._address()
        told = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(os.environ) and not os.environ.get("AWS_PROFILE")
        config = Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
        if not url.startswith("s3://") or not told or config.is_file():
            return self.store(read_only=True).source()
        from builder.stores.open import refuse_typos
        from builder.transfer.source import open_source

        refuse_typos(url)
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return open_source(url, endpoint_url=endpoint, region=region)

    def _address(self) -> tuple[str, str | None, str | None]:
        """The store's URL, endpoint and region: from the command line, else from the description."""
        url, endpoint, region = self.store_url, self.endpoint_url, self.region
        if url is None:
            weights = self.loaded().spec.weights
            url, endpoint, region = self.loaded().store_url, endpoint or weights.endpoint_url, region or weights.region
        return url, endpoint, region

    def ref(self, ref: str | None) -> str:
        """What to read: REF, or the description's name, or "" for the only model in the store."""
        spec = self.spec()
        return ref or (spec.name if spec else "")

    def engine(self, cluster: str = "") -> Engine:
        """cluster: address of a Ray cluster; "" for this machine."""
        if not cluster:
            from builder.engines.local import LocalEngine

            return LocalEngine(self.workers)
        from builder.engines.ray import RayEngine

        return RayEngine(cluster, threads=self.workers)

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
    @click.option("--concurrency", type=click.IntRange(1, 256), help="At once; default 8, for pull what is fastest.")
    @click.option("--memory", callback=_memory, metavar="SIZE", help="Chunk data in memory at most; default 256MiB.")
    @file_option
    @options
    @functools.wraps(function)
    def wrapped(
        session: Session,
        /,
        store: str | None,
        endpoint_url: str | None,
        region: str | None,
        concurrency: int | None,
        memory: int,
        file: Path | None,
        **rest: Any,
    ) -> None:
        function(Inputs(session, store, endpoint_url, region, concurrency, file, memory), **rest)

    return wrapped


def engine_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add --engine, as `cluster`: for Inputs.engine."""
    what = "Where the work runs: local, ray (RAY_ADDRESS, or this machine's cluster), ray=HOST:6379 or ray://HOST:10001."
    return click.option("--engine", "cluster", callback=_cluster, default="local", metavar="ENGINE", help=what)(function)


def _cluster(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """The Ray address that is meant; "" for none.

    >>> [_cluster(None, None, v) for v in ("local", "ray", "ray=10.0.0.1:6379", "ray://head:10001")]
    ['', 'auto', '10.0.0.1:6379', 'ray://head:10001']
    """
    kind, _, address = value.partition("=")
    if value == "local":
        return ""
    if value == "ray":
        return os.environ.get("RAY_ADDRESS", "") or "auto"
    if kind == "ray" and address:
        return address
    if value.startswith("ray://"):
        return value
    raise click.BadParameter(f"{value}: expected local, ray, ray=HOST:PORT or ray://HOST:PORT")


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> int:
    """At least the largest chunk a manifest may name: less could not hold one."""
    from builder.format.manifest import MAX_CHUNK_BYTES

    try:
        size = units.parse_size(value) if value else MEMORY
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    if size < MAX_CHUNK_BYTES:
        raise click.BadParameter(f"{value}: expected at least {units.format_size(MAX_CHUNK_BYTES)}, one chunk at its largest")
    return size


def source_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add --revision, --include and --exclude."""
    for option in (
        click.option("--exclude", multiple=True, metavar="GLOB", help="Files to leave out; wins over --include."),
        click.option("--include", multiple=True, metavar="GLOB", help="Files to take; again for more."),
        click.option("--revision", help="Branch, tag or commit of a hub model."),
    ):
        function = option(function)
    return function
