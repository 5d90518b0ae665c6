"""`builder build`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder import units
from builder.cli.common import Session, cache_folder, file_option, options
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.image.built import BuiltImage


@click.command()
@options
@file_option
@click.option("--tag", default=None, help="Reference of the image; default: image.repository:image.tag.")
@click.option(
    "--push", is_flag=True, help="Push it to its registry, with the credentials of `docker login` or `buildah login`."
)
@click.option("--no-cache", is_flag=True, help="Run every step again.")
@click.option("--cache-from", metavar="PLACE", multiple=True, help="Take steps from this cache: a ./folder or a repository.")
@click.option("--cache-to", metavar="PLACE", default="", help="Keep every step's result there: a ./folder or a repository.")
@click.option("--oci", type=click.Path(path_type=Path), default=None, help="Also write an OCI layout here, for `builder bake`.")
@click.option("--attest", type=click.Path(path_type=Path), help="Write SBOM and provenance into this folder.")
@click.option("--sign", metavar="KEY", default=None, help="Sign what is pushed with cosign: a key file, a KMS URI, or keyless.")
@click.option("--update-base", is_flag=True, help="Accept another base image than builder.lock pins.")
def command(
    session: Session,
    file: Path | None,
    tag: str | None,
    push: bool,
    no_cache: bool,
    cache_from: tuple[str, ...],
    cache_to: str,
    oci: Path | None,
    attest: Path | None,
    sign: str | None,
    update_base: bool,
) -> None:
    """Build the serving image; name it, and push it if asked, only if it holds no secret and no weights, and proves itself.

    buildx, Docker's own BuildKit and buildah can build; the first that answers does (see `builder doctor`). An executable
    `verify` beside builder.yaml is run inside the image; if it fails, the exit code is 7.
    """
    from builder import pipeline
    from builder.config import lock
    from builder.image import pruning, stubs

    if sign is not None and not push:
        raise ConfigError("--sign: signs an image in its registry", hint="add --push")
    loaded = session.load(file)
    manifest = str(lock.section(loaded.lock_path, "weights").get("manifest", ""))
    if oci is not None:
        _refuse_full(oci)
    for line in pruning.remarks(loaded.spec.image):
        session.say(line)
    locked = lock.section(loaded.lock_path, "image")
    for doubt in stubs.warnings(loaded.spec):
        session.say(f"warning: {doubt}")
    pinned = str(locked.get("base_digest", "")) if locked.get("base") == loaded.spec.image.base and not update_base else ""
    built = pipeline.build_image(
        loaded,
        manifest=manifest,
        tag=tag,
        no_cache=no_cache,
        pinned_base=pinned,
        cache_from=cache_from,
        cache_to=cache_to,
        oci=oci,
        attest=attest,
        push=push,
        sign="" if sign == "keyless" else sign,
        memory=cache_folder("images"),
        environ=os.environ,
        progress=session.progress,
    )
    lock.update(loaded.lock_path, "image", _locked(built))
    if built.backend is not None and not built.backend.reproducible:
        session.say(f"not reproducible: another build will have another digest: {built.backend.unreproducible}")
    session.show(built.to_json(), _human(built))


def _refuse_full(folder: Path) -> None:
    """Now, and not after a whole build."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"--oci {folder}: not empty", hint="name a new folder, or empty this one")


def _locked(built: BuiltImage) -> dict[str, str]:
    found = {"base": built.base, "base_digest": built.base_digest, "digest": built.digest, "reference": built.reference}
    return found | ({"pushed": built.pushed} if built.pushed else {})


def _human(built: BuiltImage) -> str:
    lines = [f"{built.reference}  {built.digest or built.id}"]
    size = f"{units.format_size(built.size)} in {len(built.layers)} layers"
    how = "unchanged, not built again" if built.unchanged else units.format_seconds(built.seconds)
    lines.append(f"{size}, {how}, {built.backend.name if built.backend else ''}")
    lines += [f"{name}  {digest}" for name, digest in built.platforms.items()]
    return "\n".join([*lines, *([f"pushed  {built.pushed}"] if built.pushed else [])])
