"""Push and pull of one synthetic model: builder, which checks every byte, against tools that check nothing, and the machine.

One run, one S3 server (rclone), the same disk for all; tools take turns, medians of the rounds after one that is not counted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import folders, limits, marks, measure, peers, tables
from benchmarks.measure import Run
from benchmarks.peers import TOOLS, Tool
from benchmarks.site import Site, site
from builder import units
from builder.units import parse_size

PARTS = ("memory", "disk", "folder", "marks", "scale")
RULES = """\
How it was measured. The S3 server, rclone, runs on the same cores, so a tool's wall time holds the server's CPU time too: it \
is in a column of its own. Tools take turns; one round is not counted; medians, with the slowest and the fastest round. The \
time of a pull ends when everything is on the disk: `syncfs` of the target is within it for every tool (builder has done its \
own fsync by then). The time of a push ends when the server has answered. warm: source in the page cache. cold: dropped from \
it before each run; the programs themselves stay warm, and a virtual machine's host may still hold the blocks. On tmpfs there \
is no disk in it at all. Before each run, the free memory that it needs is touched (benchmarks/measure.py says why). peak MiB: \
high-water marks of all processes of a tool that live at the same time. Over plain HTTP the peers hash what they send \
(benchmarks/peers.py says what); what they pull they do not check. to best peer, to limit: rate over that row's rate; above 1 \
is faster.
"""


def main() -> None:
    args = _arguments()
    measure.limit_files()
    tools = [make() for make in TOOLS]
    known = {t.name: t for t in tools}
    if unknown := [n for n in args.only or [] if n not in known]:
        raise SystemExit(f"--only {','.join(unknown)}: expected names among {', '.join(known)}")
    chosen = [t for t in tools if not args.only or t.name in args.only]
    with tempfile.TemporaryDirectory(prefix="builder-bench-", dir=args.dir) as work:
        body = "\n".join(_sections(Path(work), args, chosen))
    sys.stdout.write(body)
    if args.write:
        tables.replace_section(args.write, "weights", body)


def _arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [n.strip() for n in text.split(",") if n.strip()]

    def sizes(text: str) -> list[int]:
        return [parse_size(n) for n in names(text)]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, help="bytes of the model, about; default 1GB")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--quick", action="store_true", help="256 MB, 3 rounds, smaller marks: minutes, not for the record")
    parser.add_argument("--full", action="store_true", help="cost per GB also at 20 GB: 60 GB of free disk, half an hour")
    parser.add_argument("--sizes", type=sizes, help="of the table cost by size; default 100MB,1GB,4GB")
    parser.add_argument("--only", type=names, help="names of tools, with commas; default: all")
    parser.add_argument("--parts", type=names, default=list(PARTS), help=f"of {','.join(PARTS)}; default: all")
    parser.add_argument("--dir", type=Path, help="where to work; default: the temporary folder")
    parser.add_argument("--memory-dir", type=Path, default=Path("/dev/shm"), help="a tmpfs; default /dev/shm")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="also replace the section `weights` of this page")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"--parts {','.join(sorted(unknown))}: expected some of {','.join(PARTS)}")
    args.size = args.size or parse_size("256MB" if args.quick else "1GB")
    args.sizes = args.sizes or sizes("50MB,100MB,250MB" if args.quick else "100MB,1GB,4GB")
    args.sizes += sizes("20GB") if args.full else []
    args.rounds = args.rounds or (3 if args.quick else 5)
    return args


def _sections(work: Path, args: argparse.Namespace, tools: Sequence[Tool]) -> Iterator[str]:
    yield f"`{_command()}`: model of about {units.format_size(args.size)}, {args.rounds} rounds. {measure.machine()}.\n"
    yield RULES
    yield from _absent(tools)
    if "memory" in args.parts:
        yield from _in_memory(args, tools)
    if "disk" in args.parts or "marks" in args.parts:
        with site(work / "site", args.size) as here:
            if "disk" in args.parts:
                yield from transfers(here, tools, args.rounds, where="disk", cold=(False, True))
            if "marks" in args.parts:
                yield from marks.again(here, args.rounds)
                yield from marks.changes(here, args.size)
                yield marks.manifest()
    if "folder" in args.parts:
        yield from folders.tables(work / "folders", args.size, args.rounds)
    if "scale" in args.parts:
        yield from marks.scale(work / "scale", args.sizes, min(3, args.rounds))
    yield f"Load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n"


def _command() -> str:
    return " ".join(["python -m benchmarks weights", *sys.argv[1:]])


def _absent(tools: Sequence[Tool]) -> Iterator[str]:
    missing = [f"{t.name} (`pip install {t.missing}`)" for t in tools if t.missing]
    missing += [] if limits.nginx_program() else ["nginx (`scripts/bench-system`)"]
    if missing:
        yield f"Not installed, so not measured: {', '.join(missing)}.\n"


def _in_memory(args: argparse.Namespace, tools: Sequence[Tool]) -> Iterator[str]:
    need, free = 5 * args.size, _free(args.memory_dir)
    if free < need:
        free_text, need_text = units.format_size(free), units.format_size(need)
        yield f"Tables on tmpfs left out: {args.memory_dir} and memory have {free_text} free, {need_text} are needed.\n"
        return
    work = Path(tempfile.mkdtemp(prefix="builder-bench-", dir=args.memory_dir))
    try:
        with site(work / "site", args.size) as here:
            yield from transfers(here, tools, args.rounds, where="tmpfs", cold=(False,))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _free(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return min(shutil.disk_usage(folder).free, int(available.split()[1]) * 1024)


def transfers(here: Site, tools: Sequence[Tool], count: int, *, where: str, cold: Sequence[bool]) -> Iterator[str]:
    """A table of pushes and one of pulls for each state of the page cache."""
    there = [t for t in tools if not t.missing]
    absent = {t.name: f"not installed: {t.missing}" for t in tools if t.missing}
    builder = peers.builder()  # its chunks for its pulls, whoever is asked for
    measure.run(measure.Command(*builder.push(here.model, here.place())))
    for state in cold:
        if not state:
            measure.make_warm([here.model, here.stored(builder)])
        title = f"S3, {where}" + ("" if where == "tmpfs" else ", cold" if state else ", warm")
        yield _pushes(here, [t for t in there if t.way != "pull"], count, absent, title, state)
        yield _pulls(here, [t for t in there if t.way != "push"], count, absent, title, state)
        if state:
            yield f"Of the source, at most {max(here.left):.1%} was in the page cache when a cold run began.\n"


def _pushes(here: Site, tools: Sequence[Tool], count: int, absent: dict[str, str], title: str, cold: bool) -> str:
    runs: dict[str, Callable[[], Run]] = {t.name: (lambda t=t: here.push(t, cold=cold)) for t in tools}  # type: ignore[misc]
    runs["*preadv*"] = lambda: here.limit(limits.read(here.model), cold=cold)
    runs["*dd, read and write*"] = lambda: here.limit(limits.copy(here.model, here.out), cold=cold)
    return _table(f"push to {title}", runs, count, here, tools, "*dd, read and write*", absent)


def _pulls(here: Site, tools: Sequence[Tool], count: int, absent: dict[str, str], title: str, cold: bool) -> str:
    runs: dict[str, Callable[[], Run]] = {t.name: (lambda t=t: here.pull(t, cold=cold)) for t in tools}  # type: ignore[misc]
    runs["*dd, read and write*"] = lambda: here.limit(limits.copy(here.model, here.out), cold=cold)
    if nginx := here.nginx:
        runs["*nginx, recv*"] = lambda: here.limit(limits.receive(nginx, here.model), cold=cold)
        runs["*nginx, recv and write*"] = lambda: here.limit(limits.receive(nginx, here.model, here.out), cold=cold)
    limit = "*nginx, recv and write*" if here.nginx else "*dd, read and write*"
    return _table(f"pull from {title}", runs, count, here, tools, limit, absent)


def _table(
    title: str,
    runs: dict[str, Callable[[], Run]],
    count: int,
    here: Site,
    tools: Sequence[Tool],
    limit: str,
    absent: dict[str, str],
) -> str:
    found, failed = measure.rounds(runs, count)
    others = {t.name for t in tools if not t.ours}
    return tables.compared(title, found, here.size, peers=others, limit=limit, absent=absent | failed)
