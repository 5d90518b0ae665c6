"""Small pushes for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from builder.engines.local import LocalEngine
from builder.models.resolve import resolve
from builder.models.source import ModelRef, ModelSnapshot
from builder.stores.base import Store
from builder.stores.directory import DirectoryStore
from builder.weights import push as pushing
from builder.weights import split
from builder.weights.push import PushReport

TARGET = 16 << 10
ENGINE = LocalEngine(4)


def snapshot(source: Path) -> ModelSnapshot:
    return resolve(ModelRef(str(source)))


def push(source: Path, store: Store, *, name: str = "m", chunk_bytes: int = TARGET, **options: Any) -> PushReport:
    return pushing.push(split.plan(snapshot(source), chunk_bytes=chunk_bytes), store, ENGINE, name=name, **options)


class Watched(DirectoryStore):
    """A folder store that notes every write but those of leases, and does `before` first."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[str] = []

    def before(self, key: str, size: int) -> None:
        """For a test to replace."""

    def _write(self, key: str, size: int, fill: Any, *, keep: bool) -> None:
        lease = key.startswith("leases/")
        if not lease:
            self.before(key, size)
        super()._write(key, size, fill, keep=keep)
        if not lease:
            self.written.append(key)
