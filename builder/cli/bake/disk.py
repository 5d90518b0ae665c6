"""`builder bake disk`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.bake import inputs
from builder.cli.bake.evidence import Ask, arguments, evidence, ready, startable, verified
from builder.cli.common import Session, file_option, options, table

if TYPE_CHECKING:
    from builder.config.spec import Bake
    from builder.node.baked import DataVolume
    from builder.node.specs import NodeSpecs
    from builder.node.verify import VerifyDisk

TARGETS = ("bottlerocket", "al2023-volume", "gke-secondary", "azure-data", "raw")


@click.command("disk")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@options
@file_option
@click.option("--image", "images", multiple=True, metavar="REF",
              help="An image of the Docker engine, or docker://REF of a registry. Repeatable.")  # fmt: skip
@click.option("--oci", "layouts", multiple=True, metavar="[REF=]PATH", help="An OCI layout, folder or .tar. Repeatable.")
@click.option("--weights", "weights", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
              help="A restored model (builder weights pull). Repeatable; for small models.")  # fmt: skip
@click.option("--compile-cache", "compiled", multiple=True, metavar="[NAME@KEY=]PLACE",
              help="A captured compile cache: a folder, or a store. Repeatable.")  # fmt: skip
@click.option("--target", type=click.Choice(TARGETS), default=None, help="What kind of node reads it. Default: bottlerocket.")
@click.option("--platform", default=None, metavar="OS/ARCH", help="Platform of the images. Default: this machine's.")
@click.option("--size", default=None, metavar="SIZE", help="Size of the disk in whole GiB, such as 120GiB.")
@click.option("--containerd", "programs", default=None, type=click.Path(path_type=Path), metavar="PATH",
              help="The containerd to bake with, or its folder. Default: the one on PATH.")  # fmt: skip
@click.option("--ca-bundle", "ca", default=None, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="PEM file of authorities to trust the registry by.")  # fmt: skip
@click.option("--no-loop", is_flag=True, help="ext4 without loop devices; cannot be verified on the same machine.")
@click.option("--keep-blobs", is_flag=True, help="Keep the compressed layers on the disk.")
@click.option("--no-trim", is_flag=True, help="Leave deleted blocks in the file.")
@click.option("--archive", is_flag=True, help="Also write OUT.tar.gz, which gcloud takes (gke-secondary).")
@click.option("--force", is_flag=True, help="Replace OUT, its archive and its record if they are there.")
@click.option("--verify/--no-verify", "check", default=True, help="Open a copy with a second containerd. On by default.")
@click.option("--run", "run", default=None, metavar="ARGS", help="Arguments for the image's entry point when verifying.")
@click.option("--snapshot-id", default="", help="Write this id into the manifest instead of ${SNAPSHOT_ID}.")
@click.option("--cluster", default="", help="Write this cluster name into the manifest instead of ${CLUSTER_NAME}.")
def command(session: Session, out: Path, file: Path | None, images: tuple[str, ...], layouts: tuple[str, ...],
         weights: tuple[Path, ...], compiled: tuple[str, ...], target: str | None, platform: str | None, size: str | None,
         programs: Path | None, ca: Path | None, no_loop: bool, keep_blobs: bool, no_trim: bool, archive: bool, force: bool,
         check: bool, run: str | None, snapshot_id: str, cluster: str) -> None:  # fmt: skip
    """Bake OUT, a raw disk with images and small weights, and the files that a cluster needs to use it.

    With neither --image, --oci, --weights nor --compile-cache, builder.yaml says what to bake. Needs root, loop devices and
    containerd; the machine's own containerd is not touched, and only docker:// asks a registry.
    """
    from builder import pipeline
    from builder.config.spec import Bake
    from builder.node import workplace
    from builder.node.disk import need_root
    from builder.node.plan import BakePlan, beside, check_early
    from builder.node.programs import find
    from builder.node.specs import BOUND, CLUSTER, SNAPSHOT, check_asked
    from builder.node.targets import target as target_of

    need_root("builder bake disk")
    ask = Ask(arguments(run))
    if check and not no_loop:
        ready()
    asked = inputs.Asked(images, layouts, weights, compiled, platform or "", ca)
    loaded = session.load(file) if file or inputs.described(asked) else None
    settings = loaded.spec.bake if loaded else Bake()
    settings = settings.model_copy(update={"target": target or settings.target, "platform": platform or settings.platform})
    asked = inputs.Asked(images, layouts, weights, compiled, settings.platform or "", ca)
    given = programs or (loaded.path_of(settings.containerd) if loaded and settings.containerd else None)
    plan = BakePlan(
        out,
        weights=inputs.weights(asked, loaded),
        size=inputs.size(size, settings.volume.size),
        platform=asked.platform,
        loop=not no_loop,
        force=force,
        target=target_of(settings.target),
        programs=find(given),
        compiled=inputs.compiled(asked, loaded),
        keep_blobs=keep_blobs,
        trim=not no_trim,
        archive=archive,
    )
    check_early(plan)
    check_asked(settings, plan.target.name, snapshot_id=snapshot_id or SNAPSHOT, cluster=cluster or CLUSTER)
    with workplace.terminable(), workplace.scratch(beside(out.absolute(), ".inputs")) as scratch:
        chosen = inputs.images(asked, loaded, scratch, session.progress)
        if check and not no_loop and plan.target.containerd_root:
            startable(chosen, plan.platform, ask)
        volume = pipeline.bake_volume(replace(plan, images=chosen), progress=session.progress)
    for suffix in BOUND:  # of the disk that was replaced: nothing may take one that fails its proof for that one
        beside(out, suffix).unlink(missing_ok=True)
    proof = replace(ask, containerds=(given,) if given else ())
    report = verified(session, out, proof) if check and not no_loop else None
    specs = _specs(volume, settings, loaded.spec.name if loaded else out.stem, snapshot_id, cluster)
    written = [*volume.exports, *specs.write(out)]
    data = {
        "volume": volume.to_json(),
        "hydration": specs.hydration.to_json(),
        "verify": report.to_json() if report else None,
        "files": [str(path) for path in written],
    }
    session.show(data, _story(volume, specs, report, written))


def _specs(volume: DataVolume, settings: Bake, name: str, snapshot_id: str, cluster: str) -> NodeSpecs:
    from builder import pipeline
    from builder.node.specs import CLUSTER, SNAPSHOT

    return pipeline.specify_node(volume, settings, name=name, snapshot_id=snapshot_id or SNAPSHOT, cluster=cluster or CLUSTER)


def _story(volume: DataVolume, specs: NodeSpecs, report: VerifyDisk | None, written: list[Path]) -> str:
    from builder.units import format_seconds, format_size

    rows = [["step", "time"], *([name, format_seconds(seconds)] for name, seconds in volume.seconds.items())]
    size = f"{volume.target}, {format_size(volume.size)} {volume.filesystem}"
    disk = f"{volume.path}: {size}, {volume.blocks} blocks of 512 KiB hold something"
    lines = [table(rows, right=(1,)), "", disk, *(f"  image    {i['reference']}  {i['digest']}" for i in volume.images)]
    lines += [f"  weights  {digest}  {format_size(size)}" for digest, size in volume.weights.items()]
    lines += [f"  compiled {key}  {format_size(size)}" for key, size in volume.compiled.items()]
    lines += [f"  removed  {text} of a killed run" for text in volume.cleaned]
    lines += [
        "",
        evidence(report) if report else f"not verified; on a machine with loop devices: builder bake verify {volume.path}",
    ]
    lines += ["", f"hydration: {specs.hydration}", *([f"  {specs.hydration.advice}"] if specs.hydration.advice else [])]
    return "\n".join([*lines, "", *(f"wrote {path}" for path in written)])
