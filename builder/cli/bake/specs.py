"""`builder bake specs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.common import Session, options
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.node.specs import SnapshotRef


@click.command("specs")
@click.argument("record", type=click.Path(path_type=Path), metavar="OUT.img.json")
@options
@click.option(
    "--snapshot-id", default="", metavar="ID", help="The disk in the cloud: snap-..., or the path of an image or snapshot."
)
@click.option("--cluster", default="", help="Name of the cluster. Without it, and without the id, ${...} is left for envsubst.")
@click.option(
    "--to", type=click.Path(path_type=Path, file_okay=False), default=None, help="Folder; default: beside the record."
)
@click.option("--name", default="", help="Name of the objects, other than at the bake.")
@click.option("--region", default=None, help="Region of the snapshot.")
@click.option("--kms-key", default="", metavar="ARN", help="The key that the snapshot is encrypted with; for the IAM policy.")
@click.option("--os-version", default=None, help="Release to pin: v1.62.0 for Bottlerocket, v20260714 for AL2023.")
@click.option("--volume-type", "type_", type=click.Choice(["gp3", "gp2", "io2"]), default=None, help="EBS volume type.")
@click.option("--iops", type=int, default=None, help="Provisioned operations per second.")
@click.option("--throughput", type=int, default=None, help="Provisioned MiB/s.")
@click.option("--hydrate", "hydrated", type=click.Choice(["none", "rate", "fsr"]), default=None, help="How blocks get there.")
@click.option("--rate", "mib_per_s", type=int, default=None, help="Initialisation rate, 100 to 300 MiB/s.")
@click.option("--hot", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE",
              help="The list of bake hot, of this disk: nodes read its blocks first.")  # fmt: skip
@click.option("--reader-image", default="", metavar="REF", help="Bottlerocket: image of the container that reads them.")
def command(session: Session, record: Path, snapshot_id: str, cluster: str, to: Path | None, name: str, region: str | None,
            kms_key: str, os_version: str | None, type_: str | None, iops: int | None, throughput: int | None,
            hydrated: str | None, mib_per_s: int | None, hot: Path | None, reader_image: str) -> None:  # fmt: skip
    """Render again what a cluster needs to use a baked disk, from the record OUT.img.json beside it.

    Once the snapshot has an id, this puts it into every file. The disk itself need not be there.
    """
    from builder import pipeline

    if to and not to.is_dir():
        raise ConfigError(f"{to}: no such folder", hint=f"mkdir -p {to}")
    settings = {"region": region, "os_version": os_version, "type": type_, "iops": iops, "throughput": throughput,
                "mode": hydrated, "mib_per_s": mib_per_s}  # fmt: skip
    given = {"snapshot_id": snapshot_id, "cluster": cluster, "kms_key": kms_key}
    at = {key: value for key, value in given.items() if value}
    ref, specs, disk = pipeline.specify_again(
        record, name=name, settings=settings, to=to, hot=hot, reader_image=reader_image, **at
    )
    written = specs.write(disk)
    session.show({"snapshot": ref.to_json(), "files": [str(path) for path in written]}, _story(ref, written))


def _story(ref: SnapshotRef, written: list[Path]) -> str:
    lines = [f"{ref.id}: {ref.target} {ref.platform}, {ref.gib} GiB", *(f"  image    {r}  {d}" for r, d in ref.images)]
    lines += [f"hydration: {ref.hydration}", *([f"  {ref.hydration.advice}"] if ref.hydration.advice else [])]
    return "\n".join([*lines, "", *(f"wrote {path}" for path in written)])
