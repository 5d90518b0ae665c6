"""`builder bake hot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.bake.evidence import arguments
from builder.cli.common import Session, options, table
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.node.hot.hotlist import HotList

SHOWN = 10


@click.command("hot")
@click.argument("image", type=click.Path(path_type=Path), metavar="DISK")
@options
@click.option(
    "--run", "run", default=None, metavar="ARGS", help="Arguments for the entry point. Default: its own command line."
)
@click.option("--image", "images", multiple=True, metavar="REF", help="Start only this image of the disk. Repeatable.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=None,
              help="End the container after so long; for servers, which do not end by themselves.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=None, help="The list. Default: DISK.hot.json.")
@click.option("--list", "known", type=click.Path(path_type=Path, dir_okay=False), default=None,
              help="Start nothing: take this list, which must be of this disk, and write the reader again.")  # fmt: skip
@click.option("--method", type=click.Choice(["trace", "page-cache"]), default="trace",
              help="page-cache needs no kernel tracing; it knows neither order nor metadata.")  # fmt: skip
@click.option("--reader-image", default="", metavar="REF", help="Bottlerocket: the bootstrap container's image.")
def command(session: Session, image: Path, run: str | None, images: tuple[str, ...], seconds: float | None, out: Path | None,
            known: Path | None, method: str, reader_image: str) -> None:  # fmt: skip
    """Find the blocks of DISK that starting its images reads, in order, and write the program that reads them first on a node.

    A copy is mounted fresh, each image is started once, and the kernel's block layer is traced. Needs root, loop devices and
    containerd.
    """
    from builder import pipeline
    from builder.node.hot import reader
    from builder.node.hot.start import HotPlan

    given = [name for name, value in (("--run", run), ("--image", images), ("--seconds", seconds), ("--out", out)) if value]
    if known and given:
        raise ConfigError(f"{given[0]}: with --list nothing is started and no list is written", hint=f"leave {given[0]} out")
    if out and not out.absolute().parent.is_dir():
        raise ConfigError(f"{out.parent}: no such folder", hint=f"mkdir -p {out.parent}")
    if known:
        found = pipeline.known_hot_blocks(known, image)
    else:
        plan = HotPlan(image, run=arguments(run), images=images, seconds=seconds, method=method)
        found = pipeline.find_hot_blocks(plan, progress=session.progress)
    written = [] if known else [out or image.with_name(f"{image.name}.hot.json")]
    for path in written:  # first: the reader can be written again from it, and the start took its time
        found.write(path)
    for suffix, text in reader.files(found, image.name, image=reader_image or reader.IMAGE).items():
        written.append(image.with_name(image.name + suffix))
        written[-1].write_text(text)
    data = {"hot": found.to_json(), "reader": reader.reader(found, image.name).to_json(), "files": [str(p) for p in written]}
    session.show(data, _story(found, written))


def _story(found: HotList, written: list[Path]) -> str:
    from builder.node.hot import reader
    from builder.units import format_size

    made = reader.reader(found, "")
    order = "in order of first use" if found.ordered else "order and metadata unknown"
    lines = [f"{len(found.blocks)} of {found.nonzero_blocks} blocks, {found.share:.1%}, {format_size(found.bytes)}; {order}"]
    if made.extra:
        lines.append(f"the reader takes {made.extra} more, so that its list fits into user data")
    rows = [["read first", "bytes"]]
    rows += [[one.path, format_size(sum(size for _, size in one.ranges))] for one in found.files[:SHOWN]]
    lines += ["", table(rows, right=(1,)), f"and {len(found.files) - SHOWN} more files" if len(found.files) > SHOWN else ""]
    return "\n".join([*lines, *(f"wrote {path}" for path in written)])
