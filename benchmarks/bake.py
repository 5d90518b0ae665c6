"""Bake: a disk against unpacking and writing alone, what it holds, how fast a node starts from it, and hot blocks.

Needs root, loop devices and containerd. The image is made of this machine's own Python and packages; --packages adds others,
such as an unpacked torch, to be nearer to a model server's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import lazy, measure, node, rootfs, tables
from benchmarks.rootfs import Rootfs
from builder import process, units
from builder.errors import BuilderError
from builder.node import bake as baking
from builder.node.bake import BakePlan
from builder.node.baked import DataVolume
from builder.node.hot import reader
from builder.node.hot.start import HotPlan, hot
from builder.node.inputs import ImageInput
from builder.node.programs import find
from tests import oci

PARTS = ("bake", "blobs", "start", "versions", "vm", "hot")
GIB = 1 << 30
IMPORTS = "import json, email, asyncio, numpy"
RULES = """\
How it was measured. Warm: inputs in the page cache, memory touched. raw: `tar -xzf` of the same layers into an empty folder, \
synced, then `dd` of the finished disk's bytes, holes left out, with fsync. Bake and raw take turns; medians, with the \
fastest and the slowest. start: from `mount` of a copy to the container's exit; containerd, its CRI plugin and the container \
started in it.
"""
MODEL = """\
A first touch of a block of 512 KiB takes the given time, so many at once; later touches are free (benchmarks/lazy.py: 100 ms \
is what users of EBS see, 64 at once the cap that AWS sets). A model on this machine, not a cloud's volume; everything else \
on the way is this machine's.
"""


def main() -> None:
    args = _arguments()
    measure.limit_files()
    with tempfile.TemporaryDirectory(prefix="builder-bench-", dir=args.dir) as work:
        body = "\n".join(_sections(Path(work), args))
    sys.stdout.write(body)
    if args.write:
        tables.replace_section(args.write, "bake", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--size", type=units.parse_size, default=10**9, help="of the image, unpacked; default: 1 GB")
    parser.add_argument("--packages", type=Path, help="a folder whose files come right after the interpreter")
    parser.add_argument("--dense", type=float, default=rootfs.DENSE, help="share of it that does not compress; default: 0.25")
    parser.add_argument("--imports", default=IMPORTS, help="what the image's Python runs when blocks are traced")
    parser.add_argument(
        "--containerd", type=Path, action="append", default=[], help="a folder with another version; repeatable"
    )
    parser.add_argument("--first-ms", type=float, action="append", help="of the lazy disk; repeatable; default: 100")
    parser.add_argument("--at-once", type=int, default=lazy.AT_ONCE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where to work, 8 GB; default: the temporary folder")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="also replace the section `bake` of this page")
    return parser.parse_args()


def _sections(work: Path, args: argparse.Namespace) -> Iterator[str]:
    yield f"{measure.machine()}\n\n`python -m benchmarks bake {' '.join(sys.argv[1:])}`\n\n{RULES}"
    if {"bake", "blobs", "hot"} & set(args.parts):
        image = rootfs.make(work / "image", args.size, args.packages, dense=args.dense)
        plan = BakePlan(work / "bake.img", images=(ImageInput(image.layout),), size=8 * GIB, force=True)
        parts = {"bake": _against_raw, "blobs": _blobs, "hot": _hot}
        for name in [name for name in parts if name in args.parts]:
            yield from parts[name](work, image, plan, args)
    if {"start", "versions", "vm"} & set(args.parts):
        oci.write_layout(work / "small")
        small = BakePlan(work / "small.img", images=(ImageInput(work / "small"),), size=GIB, force=True)
        tests = {"start": _starts, "versions": _versions, "vm": _vm}
        for name in [name for name in tests if name in args.parts]:
            yield from tests[name](work, small, args)


def _against_raw(work: Path, image: Rootfs, plan: BakePlan, args: argparse.Namespace) -> Iterator[str]:
    bakes: list[float] = []
    unpacks: list[float] = []
    writes: list[float] = []
    steps: dict[str, list[float]] = {}
    for number in range(args.rounds + 1):
        measure.make_warm([image.layout])
        measure.touch_memory(4 * image.unpacked)
        volume = _baked(plan)
        took = (sum(volume.seconds.values()), _seconds(lambda: _unpack(work, image)), _seconds(lambda: _write(work, plan.out)))
        if number:
            for found, seconds in zip((bakes, unpacks, writes), took, strict=True):
                found.append(seconds)
            for name, seconds in volume.seconds.items():
                steps.setdefault(name.partition(" registry")[0], []).append(seconds)
    raw = [one + two for one, two in zip(unpacks, writes, strict=True)]
    ratios = [one / two for one, two in zip(bakes, raw, strict=True)]
    head = ("image", "whole bake", "raw", "unpack", "write", "ratio (mark: 1.3)")
    size = f"{units.format_size(image.unpacked)} in {len(image.layers)} gzip layers of {units.format_size(image.packed)}"
    middle = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    yield tables.plain("whole bake against raw", head, [(size, *map(_spread, (bakes, raw, unpacks, writes)), middle)])
    rows = [(name, _spread(seconds), f"{sum(seconds) / sum(bakes):.0%}") for name, seconds in steps.items()]
    yield tables.plain("where the bake's time goes", ("step", "seconds", "share"), rows)


def _blobs(work: Path, image: Rootfs, plan: BakePlan, args: argparse.Namespace) -> Iterator[str]:
    dropped = _baked(plan)
    kept = _baked(replace(plan, out=work / "kept.img", keep_blobs=True))
    kept.path.unlink()
    both = [f"{one.blocks} ({units.format_size(one.nonzero_bytes)})" for one in (dropped, kept)]
    row = (*both, f"{dropped.blocks / kept.blocks:.2f}")
    head = ("layers dropped", "layers kept", "share (mark: 0.70)")
    yield tables.plain("non-zero blocks of 512 KiB", head, [row])


def _starts(work: Path, plan: BakePlan, args: argparse.Namespace) -> Iterator[str]:
    volume, found = _baked(plan), []
    for number in range(args.rounds + 1):
        copy = node.fresh_copy(volume.path, work / "node.img")
        one = node.start_on(copy, ("/bin/true",))
        found += [one] if number else []
    columns = (
        [one.whole for one in found],
        [one.mount for one in found],
        [one.daemon for one in found],
        [one.run for one in found],
    )
    head = ("image", "mount to exit (mark: 1 s)", "mount", "containerd ready", "container")
    yield tables.plain("start on a new node", head, [("a shell, 2 layers", *map(_spread, columns))])


def _versions(work: Path, plan: BakePlan, args: argparse.Namespace) -> Iterator[str]:
    """Baked by each, started by each."""
    programs = {one.version: one for one in [find(), *map(find, args.containerd)]}
    rows = []
    for baker, one in programs.items():
        volume, cells = _baked(replace(plan, programs=one)), []
        for starter in programs.values():
            copy = node.fresh_copy(volume.path, work / "node.img")
            try:
                cells.append(f"starts, {node.start_on(copy, ('/bin/true',), programs=starter).whole:.2f} s")
            except BuilderError as exc:
                cells.append(f"fails: {' '.join(exc.message.split())[:120]}")
        rows.append((baker, *cells))
    yield tables.plain("baked by (row), started by (column)", ("containerd", *programs), rows)


def _vm(work: Path, plan: BakePlan, args: argparse.Namespace) -> Iterator[str]:
    volume = _baked(plan)
    command = [sys.executable, "-c", "import sys; from builder.cli import main; sys.exit(main())", "bake", "verify"]
    offered = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    if "--vm" not in offered:
        yield "`bake verify --vm`: not in this version.\n"
        return
    found = []
    for _ in range(args.rounds):
        begun = time.perf_counter()
        done = subprocess.run(
            [*command, "--vm", "--run", "/bin/true", volume.path], capture_output=True, text=True, check=False
        )
        if done.returncode:
            yield f"`bake verify --vm`: exit {done.returncode}: {' '.join(done.stderr.split())[-300:]}\n"
            return
        found.append(time.perf_counter() - begun)
    yield tables.plain("`bake verify --vm`", ("image", "whole command (mark: 60 s)"), [("a shell, 2 layers", _spread(found))])


def _hot(work: Path, image: Rootfs, plan: BakePlan, args: argparse.Namespace) -> Iterator[str]:
    volume = _baked(plan)
    run = ("-c", args.imports)
    listed = hot(HotPlan(volume.path, run=run))
    script = work / "hot.sh"
    made = reader.reader(listed, volume.path.name)
    script.write_text(made.script)
    rows = [(f"`{args.imports}`", str(listed.nonzero_blocks), str(len(listed.blocks)), f"{listed.share:.1%}",
             units.format_size(listed.bytes), str(len(listed.files)), f"{len(made.script)} B")]  # fmt: skip
    head = ("start", "blocks", "touched", "share", "bytes", "files", "reader")
    yield tables.plain("hot blocks", head, rows)
    rows = []
    for first_ms in args.first_ms or [lazy.FIRST_MS]:
        for parallel in dict.fromkeys((args.at_once, 8)):
            plain, reading, after = [], [], []
            for _ in range(args.rounds):
                plain.append(_lazy_start(work, volume, run, None, first_ms, parallel)[1])
                read, then = _lazy_start(work, volume, run, script, first_ms, parallel)
                reading.append(read)
                after.append(then)
            both = statistics.median(a + b for a, b in zip(reading, after, strict=True))
            rows.append((f"{first_ms:.0f} ms, {parallel} at once", _spread(plain), _spread(reading), _spread(after),
                         f"{both:.2f} s", f"{statistics.median(plain) / both:.1f}"))  # fmt: skip
    head = ("first touch", "start alone", "hot blocks read", "start after that", "both", "times faster")
    yield MODEL
    yield tables.plain("start on a disk that loads blocks when first touched", head, rows)


def _lazy_start(work: Path, volume: DataVolume, run: tuple[str, ...], script: Path | None, first_ms: float,
                at_once: int) -> tuple[float, float]:  # fmt: skip
    """(seconds of the reader, seconds from mount to exit)"""
    copy = node.fresh_copy(volume.path, work / "node.img")
    with node.lazily(copy, work / "lazy", first_ms=first_ms, at_once=at_once) as device:
        read = _seconds(lambda: process.run(["sh", script, device])) if script else 0.0
        return read, node.start_on(copy, run, device=device).whole


def _baked(plan: BakePlan) -> DataVolume:
    return baking.bake(plan)


def _unpack(work: Path, image: Rootfs) -> None:
    folder = Path(tempfile.mkdtemp(dir=work))  # removed with `work`: a removal is no part of unpacking
    for layer in image.layers:
        process.run(["tar", "--extract", "--gzip", "--file", layer, "--directory", folder])
    measure.syncfs(folder)


def _write(work: Path, disk: Path) -> None:
    process.run(["dd", f"if={disk}", f"of={work}/raw.img", "bs=4M", "conv=sparse,fsync"])
    (work / "raw.img").unlink()


def _seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
