"""A model file whose second half can be read only once a gate is open. Importable, so that other processes can unpickle it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder.models.source import LocalFile, Reading
from tests.bounds import BOUND_S


@dataclass(frozen=True)
class GatedFile:
    """folder: holds `open` once the gate is open, and `waits-<offset>-<node>` for each range that came to it."""

    file: LocalFile
    folder: Path
    sha256: str = ""
    identity: str = ""

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def at(self) -> str:
        return self.file.at

    @contextmanager
    def open(self) -> Iterator[Reading]:
        with self.file.open() as reading:
            yield _Gated(self, reading)

    def waiting(self) -> set[tuple[int, str]]:
        """(offset, node) of the reads that came to the gate."""
        found = (p.name.split("-") for p in self.folder.glob("waits-*"))
        return {(int(offset), node) for _, offset, node in found}

    def let_in(self) -> None:
        (self.folder / "open").touch()


@dataclass(frozen=True)
class _Gated:
    gate: GatedFile
    reading: Reading

    def read_at(self, offset: int, size: int) -> bytes:
        if offset >= self.gate.size // 2:
            self._wait(offset)
        return self.reading.read_at(offset, size)

    def _wait(self, offset: int) -> None:
        import ray

        node = ray.get_runtime_context().get_node_id()
        (self.gate.folder / f"waits-{offset}-{node}").touch()
        end = time.monotonic() + BOUND_S
        while not os.path.exists(self.gate.folder / "open"):  # noqa: PTH110
            if time.monotonic() > end:
                raise TimeoutError("the gate was never opened")
            time.sleep(0.02)

    def require_unchanged(self) -> None:
        self.reading.require_unchanged()
