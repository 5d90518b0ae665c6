"""`builder verify`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.common import Session, file_option, options
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.config.load import Loaded
    from builder.verify.launch import Launch


@click.command()
@options
@file_option
@click.option("--in-place", is_flag=True, help="Without Docker: run the server on this machine, with this Python.")
@click.option("--image", "reference", metavar="REF", help="The image to start. Default: image.repository with its tag.")
@click.option("--ref", metavar="NAME|DIGEST", help="The weights. Default: builder.lock, else the name in the store.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("build/report"), show_default=True,
              help="Folder for report.json, report.md and report.html.")  # fmt: skip
@click.option("--runs", type=click.IntRange(1, 100), help="Cold starts to measure. Default: verify.runs.")
@click.option("--models-root", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A folder of restored models, mounted read-only, in place of a fetch: the baked node.")  # fmt: skip
@click.option("--timeout", "timeout", default="10min", show_default=True, help="How long one start may take until ready.")
@click.option("--memory", metavar="SIZE", help="Memory limit of the container, as Docker writes it: 8g.")
@click.option("--shm", metavar="SIZE", help="Shared memory of the container, as Docker writes it: 2g.")
@click.option("--read-only", is_flag=True, help="Mount the image's root file system read-only.")
def command(
    session: Session, file: Path | None, in_place: bool, reference: str | None, ref: str | None, out: Path, runs: int | None,
    models_root: Path | None, timeout: str, memory: str | None, shm: str | None, read_only: bool,
) -> None:  # fmt: skip
    """Start the built image, wait until it is ready, and prove what it claims.

    Asks a question twice, looks at the engine's own process, runs the load of builder.yaml and compares with its
    budgets. Writes report.json, report.md and report.html. Exits 7 if a claim does not hold, else 6 if a budget is missed.
    """
    from builder import pipeline
    from builder.cli.report import human
    from builder.verify import files
    from builder.verify.container import Options

    loaded = session.load(file)
    verify = loaded.spec.verify.model_copy(update={"runs": runs} if runs else {})
    launch = _launch(loaded, ref, models_root)
    timeout_s = _seconds(timeout)
    if in_place:
        if reference or memory or shm or read_only:
            raise ConfigError("--image, --memory, --shm and --read-only are about a container", hint="leave out --in-place")
        report = pipeline.verify_in_place(launch, verify, environ=os.environ, timeout_s=timeout_s, progress=session.progress)
    else:
        image = reference or f"{loaded.spec.image.repository}:{loaded.spec.image.tag}"
        box = Options(gpu=verify.gpu, memory=memory, shm=shm, read_only=read_only)
        report = pipeline.verify_image(image, launch, verify, box=box, timeout_s=timeout_s, progress=session.progress)
    written = files.write(report, out)
    session.say(f"report: {written.html}")
    session.conclude(report.to_json(), human(report), report.failure())


def _launch(loaded: Loaded, ref: str | None, models_root: Path | None) -> Launch:
    """The server to start, with its weights resolved to one exact version."""
    from builder.config import lock
    from builder.stores.open import open_store
    from builder.transfer.manifests import read_manifest
    from builder.verify import launch

    weights = loaded.spec.weights
    wanted = ref or str(lock.section(loaded.lock_path, "weights").get("manifest") or "") or loaded.spec.name
    source = open_store(loaded.store_url, endpoint_url=weights.endpoint_url, region=weights.region, read_only=True).source()
    manifest = read_manifest(source, wanted)
    name, digest = manifest.name, manifest.digest
    return launch.of(loaded.spec, name=name, manifest=digest, store=loaded.store_url, environ=os.environ, models=models_root)


def _seconds(text: str) -> float:
    from builder.units import parse_seconds

    try:
        return parse_seconds(text)
    except ValueError as exc:
        raise ConfigError(f"--timeout: {exc}") from exc
