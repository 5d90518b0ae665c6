"""`builder bake disk`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.bake.evidence import evidence, verified
from builder.cli.common import Session, file_option, options, table
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.config.load import Loaded
    from builder.config.spec import Bake
    from builder.node.bake import DataVolume
    from builder.node.inputs import ImageInput, WeightsInput
    from builder.node.specs import NodeSpecs
    from builder.node.verify import VerifyDisk


@click.command("disk")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@options
@file_option
@click.option("--image", "images", multiple=True, metavar="REF", help="An image of the Docker engine. Repeatable.")
@click.option("--oci", "layouts", multiple=True, metavar="[REF=]PATH", help="An OCI layout, folder or .tar. Repeatable.")
@click.option("--weights", "weights", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
              help="A restored model (builder weights pull). Repeatable; for small models.")  # fmt: skip
@click.option("--target", type=click.Choice(["bottlerocket"]), default="bottlerocket", help="What kind of node reads it.")
@click.option("--size", default=None, metavar="SIZE", help="Size of the disk in whole GiB, such as 120GiB.")
@click.option("--no-loop", is_flag=True, help="ext4 without loop devices; cannot be verified on the same machine.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@click.option("--verify/--no-verify", "check", default=True, help="Open a copy with a second containerd. On by default.")
@click.option("--run", "run", default=None, metavar="ARGS", help="Arguments for the image's entry point when verifying.")
@click.option("--snapshot-id", default="", help="Write this id into the manifest instead of ${SNAPSHOT_ID}.")
@click.option("--cluster", default="", help="Write this cluster name into the manifest instead of ${CLUSTER_NAME}.")
def command(session: Session, out: Path, file: Path | None, images: tuple[str, ...], layouts: tuple[str, ...],
         weights: tuple[Path, ...], target: str, size: str | None, no_loop: bool, force: bool, check: bool,
         run: str | None, snapshot_id: str, cluster: str) -> None:  # fmt: skip
    """Bake OUT, a raw disk with images and small weights, and the files that a cluster needs to use it.

    With neither --image, --oci nor --weights, builder.yaml says what to bake. Needs root, loop devices and containerd;
    nothing is pulled, and the machine's own containerd is not touched.
    """
    from builder import pipeline
    from builder.node.bake import BakePlan
    from builder.node.disk import need_root

    need_root("builder bake disk")
    loaded = session.load(file) if file or not (images or layouts or weights) else None
    settings = _settings(loaded)
    with tempfile.TemporaryDirectory(prefix="builder-bake-", dir=out.absolute().parent) as scratch:
        chosen, models = _inputs(loaded, images, layouts, weights, Path(scratch))
        plan = BakePlan(out, chosen, models, size=_size(size, settings), loop=not no_loop, force=force)
        volume = pipeline.bake_volume(plan, progress=session.progress)
    report = verified(session, out, run) if check and not no_loop else None
    specs = _specs(volume, settings, loaded.spec.name if loaded else out.stem, snapshot_id, cluster)
    written = specs.write(out)
    data = {
        "volume": volume.to_json(),
        "hydration": specs.hydration.to_json(),
        "verify": report.to_json() if report else None,
        "files": [str(path) for path in written],
    }
    session.show(data, _story(volume, specs, report, written))


def _settings(loaded: Loaded | None) -> Bake:
    from builder.config.spec import Bake

    settings = loaded.spec.bake if loaded else Bake()
    if "compile-cache" in settings.contents:
        raise ConfigError("bake.contents: compile-cache cannot be baked by this version", hint="remove it from bake.contents")
    return settings


def _inputs(loaded: Loaded | None, images: tuple[str, ...], layouts: tuple[str, ...], weights: tuple[Path, ...],
            scratch: Path) -> tuple[tuple[ImageInput, ...], tuple[WeightsInput, ...]]:  # fmt: skip
    """What the command line names, or else what builder.yaml does. Images of the engine are exported to `scratch`."""
    from builder.node.inputs import ImageInput, WeightsInput

    chosen = [ImageInput(Path(path), reference) for reference, path in map(_layout, layouts)]
    models = [WeightsInput(folder=path) for path in weights]
    references = list(images)
    if loaded and not (images or layouts or weights):
        spec = loaded.spec
        if "image" in spec.bake.contents:
            references.append(f"{spec.image.repository}:{spec.image.tag}")
        if "weights" in spec.bake.contents:
            models.append(WeightsInput(store=loaded.store_url, reference=spec.name, endpoint_url=spec.weights.endpoint_url,
                                       region=spec.weights.region))  # fmt: skip
    if references:
        from builder.image.engine import export_oci

        for number, reference in enumerate(references):
            folder = scratch / str(number)
            export_oci(reference, folder)
            chosen.append(ImageInput(folder, reference))
    return tuple(chosen), tuple(models)


def _layout(text: str) -> tuple[str, str]:
    """`REF=PATH` or `PATH` to (reference, path). A path that exists is a path, = or not."""
    reference, sign, path = text.partition("=")
    return (reference, path) if sign and not Path(text).exists() else ("", text)


def _size(text: str | None, settings: Bake) -> int:
    from builder.units import parse_size

    if text is None:
        return settings.volume.size
    try:
        return parse_size(text)
    except ValueError as exc:
        raise ConfigError(f"--size: {exc}") from exc


def _specs(volume: DataVolume, settings: Bake, name: str, snapshot_id: str, cluster: str) -> NodeSpecs:
    from builder import pipeline
    from builder.node.specs import CLUSTER, SNAPSHOT

    return pipeline.specify_node(volume, settings, name=name, snapshot_id=snapshot_id or SNAPSHOT, cluster=cluster or CLUSTER)


def _story(volume: DataVolume, specs: NodeSpecs, report: VerifyDisk | None, written: list[Path]) -> str:
    from builder.units import format_seconds, format_size

    rows = [["step", "time"], *([name, format_seconds(seconds)] for name, seconds in volume.seconds.items())]
    disk = f"{volume.path}: {format_size(volume.size)} {volume.filesystem}, {volume.blocks} blocks of 512 KiB hold something"
    lines = [table(rows, right=(1,)), "", disk, *(f"  image    {i['reference']}  {i['digest']}" for i in volume.images)]
    lines += [f"  weights  {digest}  {format_size(size)}" for digest, size in volume.weights.items()]
    lines += [f"  removed  {text} of a killed run" for text in volume.cleaned]
    lines += [
        "",
        evidence(report) if report else f"not verified; on a machine with loop devices: builder bake verify {volume.path}",
    ]
    lines += ["", f"hydration: {specs.hydration}", *([f"  {specs.hydration.advice}"] if specs.hydration.advice else [])]
    return "\n".join([*lines, "", *(f"wrote {path}" for path in written)])
