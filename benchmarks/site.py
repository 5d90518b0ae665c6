"""One folder on one file system with everything a table needs: the model, an S3 server over it, nginx, targets.

model/              the files
s3/plain/m          the same files (hard links) as objects, for the peers' pulls
s3/chunks           builder's store of them
s3/up               target of every push, emptied before it
out/                target of every pull, removed before it
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import limits, measure
from benchmarks.limits import Nginx
from benchmarks.measure import Command, Failed, Run
from benchmarks.peers import Place, Tool
from builder.stores import rclone

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.models import safetensors_model

MEMORY_BYTES = 512 << 20  # that a tool may want beside the page cache
VOCAB = 4096
WIDTHS = (2048, 1024, 512, 256)  # of a hidden state; the widest of which four layers fit
SETTLE_S = 0.15  # the server sees folders that were removed behind its back after 50 ms (stores/rclone.py)


@dataclass(frozen=True)
class Site:
    """size: bytes of the model.  pid: the S3 server's.  nginx: None where it is not installed.

    left: before each cold run, the share of its source that stayed in the page cache.
    """

    root: Path
    endpoint_url: str
    env: Mapping[str, str]
    pid: int
    nginx: Nginx | None
    size: int
    left: list[float] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def stored(self, tool: Tool) -> Path:
        """What the server reads when `tool` pulls."""
        return self.root / "s3" / ("chunks" if tool.ours else "plain")

    def place(self, bucket: str = "plain") -> Place:
        return Place(self.endpoint_url, self.env, bucket, store=f"s3://{'chunks' if bucket == 'plain' else bucket}/m")

    def push(self, tool: Tool, *, cold: bool = False, model: Path | None = None) -> Run:
        """Into an empty bucket. What the server wrote is not synced within the time, for no tool."""
        empty(self.root / "s3" / "up")
        return self.push_again(tool, cold=cold, model=model)

    def push_again(self, tool: Tool, *, cold: bool = False, model: Path | None = None) -> Run:
        """Into the bucket as it is."""
        folder = model or self.model
        self._settle()
        self._cool(folder, cold)
        argv, env = tool.push(folder, self.place("up"))
        return measure.run(Command(argv, env), [self.pid])

    def pull(self, tool: Tool, *, cold: bool = False) -> Run:
        """Into an empty folder; on the disk within the time, for every tool. The first time, the bytes are compared."""
        shutil.rmtree(self.out, ignore_errors=True)
        if not tool.ours:  # makes its own
            self.out.mkdir()
        self._settle()
        self._cool(self.stored(tool), cold)
        argv, env = tool.pull(self.place(), self.out)
        done = measure.run(Command(argv, env, self.root), [self.pid])
        if tool.name not in self._seen:
            same(self.model, self.out)
            self._seen.add(tool.name)
        return done

    def limit(self, command: Command, *, cold: bool = False) -> Run:
        empty(self.out)
        self._settle()
        self._cool(self.model, cold)
        return measure.run(command, [self.nginx.pid] if self.nginx else [])

    def _cool(self, source: Path, cold: bool) -> None:
        if cold:
            self.left.append(measure.make_cold([source]))

    def _settle(self) -> None:
        """What earlier runs left to be written is not this one's to wait for, nor is the memory that they gave back."""
        measure.syncfs(self.root)
        time.sleep(SETTLE_S)
        measure.touch_memory(self.size + MEMORY_BYTES)


@contextlib.contextmanager
def site(root: Path, size: int) -> Iterator[Site]:
    """A model of about `size` bytes below `root`, which is removed at the end, and its servers."""
    try:
        total = make_model(root / "model", size)
        for bucket in ("plain/m", "chunks", "up"):
            (root / "s3" / bucket).mkdir(parents=True)
        for path in (root / "model").iterdir():
            (root / "s3" / "plain" / "m" / path.name).hardlink_to(path)
        with contextlib.ExitStack() as servers:
            s3 = servers.enter_context(rclone.serve(root / "s3"))
            pid = measure.child("s3", str(root / "s3"))
            nginx = servers.enter_context(limits.serve(root / "model", root / "nginx")) if limits.nginx_program() else None
            yield Site(root, s3.endpoint_url, os.environ | s3.env, pid, nginx, total)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def make_model(folder: Path, size: int, **changed: object) -> int:
    """A LLaMA-shaped model of random bytes in 4 shards, about `size` bytes. Returns its exact size."""
    hidden = next((w for w in WIDTHS if 4 * _layer_bytes(w) < size), WIDTHS[-1])
    shape: dict[str, object] = {"layers": max(4, size // _layer_bytes(hidden)), "hidden": hidden, "vocab": VOCAB, "shards": 4}
    safetensors_model(folder, **{**shape, **changed})  # type: ignore[arg-type]
    return sum(p.stat().st_size for p in folder.iterdir())


def _layer_bytes(hidden: int) -> int:
    """bf16: four square attention projections, three of the MLP with three times the width."""
    return 2 * (4 + 9) * hidden * hidden


def empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def same(want: Path, found: Path) -> None:
    """Raises Failed unless every file of `want` is in `found` with the same bytes."""
    names = [p.name for p in want.iterdir()]
    _, differ, errors = filecmp.cmpfiles(want, found, names, shallow=False)
    if differ or errors:
        raise Failed(f"{found}: differs from what was stored: {differ + errors}")
