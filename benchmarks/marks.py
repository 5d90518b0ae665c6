"""What a transfer should cost beside its rate: the second push, a changed model, a large manifest, memory, size."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import measure, peers, site
from benchmarks.measure import Run, median
from benchmarks.site import Site
from benchmarks.tables import plain
from builder import units
from builder.format import manifest as manifests
from builder.format.manifest import Chunk, File, Manifest, Tensor

CHUNKS, FILES, TENSORS = 10_000, 40, 720  # about 160 GB at 16 MiB; tensors as of a 70B model
MEMORY, CONNECTIONS = "256MiB", 16
START = "start: the same command again, when nothing is left to do. share of it: of the whole time.\n"


def again(here: Site, count: int) -> Iterator[str]:
    """The second push of an unchanged model, beside the first. Objects written are seen at the server's files."""
    tool = peers.builder()
    first: list[Run] = []
    second: list[Run] = []
    written: list[int] = []
    for number in range(count + 1):
        one = here.push(tool)
        before = _objects(here)
        two = here.push_again(tool)
        if number:
            first.append(one)
            second.append(two)
            written.append(sum(before.get(path) != state for path, state in _objects(here).items()))
    wall, share = median(second, lambda r: r.wall), [b.wall / a.wall for a, b in zip(first, second, strict=True)]
    row = (
        f"{median(first, lambda r: r.wall):.2f} s",
        f"{wall:.2f} s ({min(r.wall for r in second):.2f} to {max(r.wall for r in second):.2f})",
        f"{statistics.median(share):.1%}",
        f"{median(second, lambda r: r.cpu):.2f} s",
        str(max(written)),
        str(max(_said(r)["sent_chunks"] for r in second)),
    )
    head = ("first push", "second, unchanged", "share", "CPU of the second", "objects written", "chunks sent")
    yield plain(f"push again, unchanged ({here.size / 1e9:.2f} GB)", head, [row])


def _objects(here: Site) -> dict[Path, tuple[int, int]]:
    """Every object of the server's bucket `up`, and what a PUT to it would change: inode and time of change."""
    found = {}
    for path in (here.root / "s3" / "up").rglob("*"):
        if path.is_file():
            state = path.stat()
            found[path] = (state.st_ino, state.st_ctime_ns)
    return found


def changes(here: Site, size: int) -> Iterator[str]:
    """Bytes sent again after each change, into a store that holds the model."""
    tool, other = peers.builder(), here.root / "changed"
    rows = []
    for what, changed in (
        ("a longer header (metadata added to every shard)", {"metadata": "x" * 200}),
        ("4 shards made 2", {"shards": 2}),
        ("64 vocabulary rows appended (embedding and head)", {"vocab": site.VOCAB + 64}),
    ):
        here.push(tool)
        site.make_model(other, size, **changed)
        said = _said(here.push_again(tool, model=other))
        sent = f"{said['sent_chunks']} ({units.format_size(said['sent_bytes'])})"
        rows.append((what, str(said["chunks"]), sent, f"{said['sent_bytes'] / said['bytes']:.2%}"))
        shutil.rmtree(other)
    yield plain(f"push after a change ({here.size / 1e9:.2f} GB)", ("change", "chunks", "sent again", "of all bytes"), rows)


def _said(run: Run) -> dict[str, int]:
    told: dict[str, int] = json.loads(run.said)
    return told


def manifest(rounds: int = 15) -> str:
    """Parse and check a manifest as pull, serve and the image do."""
    body = big_manifest().to_bytes()
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        manifests.parse(body, at="benchmark", digest=digest)
        times.append((time.perf_counter() - start) * 1e3)
    spread = f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
    row = (str(CHUNKS), str(TENSORS), str(FILES), units.format_size(len(body)), spread)
    return plain("parse a manifest", ("chunks", "tensors", "files", "size", "ms"), [row])


def big_manifest() -> Manifest:
    size = 16 << 20
    each, tensors = CHUNKS // FILES, TENSORS // FILES
    files = []
    for number in range(FILES):
        chunks = tuple(
            Chunk(sha256=_hex(f"{number}/{i}", 64), offset=i * size, size=size, crc64nvme=_hex(f"{number}/{i}", 16))
            for i in range(each)
        )
        span = each * size // tensors
        named = tuple(
            Tensor(f"model.layers.{number}.part.{t}.weight", "BF16", (span // 2,), t * span, span, 2, f"layer:{number}")
            for t in range(tensors)
        )
        name = f"model-{number + 1:05d}-of-{FILES:05d}.safetensors"
        files.append(File(name, each * size, _hex(name, 64), _hex(name, 16), "safetensors", 0, chunks, named))
    order = tuple(c.sha256 for f in files for c in f.chunks)
    return Manifest("benchmark", "benchmark", "", "benchmark", tuple(files), order, {})


def _hex(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def scale(work: Path, sizes: Sequence[int], count: int) -> Iterator[str]:
    """Cost per GB by size of the model, and the peak memory of a large one under --memory with many connections."""
    rows: list[tuple[str, ...]] = []
    memory: list[tuple[str, ...]] = []
    largest = max(s for s in sizes if s < 5e9)
    for size in sizes:
        with site.site(work / str(size), size) as here:
            rows += _costs(here, count)
            if size == largest:
                memory = _peaks(here)
    cost = (
        "work",
        "GB",
        "s/GB (min to max)",
        "CPU s/GB",
        "server CPU s/GB",
        "MiB",
        "start, s",
        "beyond it, s/GB",
        "share of it",
    )
    yield plain("cost by size, S3, disk, warm", cost, rows)
    yield START
    head = ("work", "GB", "--memory", "--concurrency", "peak MiB", "over the budget, MiB")
    yield plain("memory", head, memory)


def _costs(here: Site, count: int) -> list[tuple[str, ...]]:
    tool = peers.builder()
    measure.run(measure.Command(*tool.push(here.model, here.place())))
    turns = {
        "push": lambda: here.push(tool),
        "push again": lambda: here.push_again(tool),
        "pull": lambda: here.pull(tool),
        "pull again": lambda: measure.run(measure.Command(*tool.pull(here.place(), here.out))),
    }
    found, failed = measure.rounds(turns, count)
    if failed:
        raise measure.Failed(str(failed))
    gb, rows = here.size / 1e9, []
    for way in ("push", "pull"):
        runs, start = found[way], median(found[f"{way} again"], _wall)
        wall = median(runs, _wall)
        rows.append(
            (
                way,
                f"{gb:.2f}",
                f"{wall / gb:.2f} ({min(map(_wall, runs)) / gb:.2f} to {max(map(_wall, runs)) / gb:.2f})",
                f"{median(runs, lambda r: r.cpu) / gb:.2f}",
                f"{median(runs, lambda r: r.server) / gb:.2f}",
                f"{max(r.rss for r in runs) / 2**20:.0f}",
                f"{start:.2f}",
                f"{(wall - start) / gb:.2f}",
                f"{start / wall:.1%}",
            )
        )
    return rows


def _wall(run: Run) -> float:
    return run.wall


def _peaks(here: Site) -> list[tuple[str, ...]]:
    """Peak memory with a budget and many connections."""
    tool, more = peers.builder(), ["--memory", MEMORY, "--concurrency", str(CONNECTIONS)]
    bounded = replace(
        tool,
        push=lambda folder, place: ([*tool.push(folder, place)[0], *more], place.env),
        pull=lambda place, folder: ([*tool.pull(place, folder)[0], *more], place.env),
    )
    rows: list[tuple[str, ...]] = []
    for way, run in (("push", here.push(bounded)), ("pull", here.pull(bounded))):
        over = run.rss - units.parse_size(MEMORY)
        peak = f"{run.rss / 2**20:.0f}"
        rows.append((way, f"{here.size / 1e9:.2f}", MEMORY, str(CONNECTIONS), peak, f"{over / 2**20:+.0f}"))
    return rows
