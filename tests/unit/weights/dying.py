"""A folder store whose process is killed at its n-th call, and what must hold afterwards."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from builder.stores.base import Entry, Reader, Stored
from builder.stores.directory import DirectoryStore
from builder.transfer.checksum import Buffer
from builder.transfer.manifests import read_manifest
from builder.weights import refs
from builder.weights.lease import TIMING


class Killed(BaseException):
    """Passes every handler, as kill -9 does."""


class DyingStore(DirectoryStore):
    """From the call number `at` on, every call raises Killed and does nothing. calls: how many there were."""

    def __init__(self, root: Path, at: int = -1) -> None:
        super().__init__(root)
        self.at, self.calls = at, 0
        self._count = threading.Lock()

    def _call(self) -> None:
        with self._count:
            self.calls += 1
            if 0 <= self.at < self.calls:
                raise Killed

    def size(self, key: str) -> int | None:
        self._call()
        return super().size(key)

    def stat(self, key: str) -> Stored | None:
        self._call()
        return super().stat(key)

    def get(self, key: str, limit: int) -> Buffer | None:
        self._call()
        return super().get(key, limit)

    def entries(self, prefix: str) -> Iterator[Entry]:
        self._call()
        return super().entries(prefix)

    def delete(self, key: str) -> None:
        self._call()
        super().delete(key)

    def _write(self, *args: Any, **options: Any) -> None:
        self._call()
        super()._write(*args, **options)


def age(root: Path, seconds: float, *prefixes: str) -> None:
    """As if what is there below the prefixes (all of it, if none is given) had been written `seconds` earlier."""
    for path in root.rglob("*"):
        if path.is_file() and (not prefixes or path.relative_to(root).as_posix().startswith(prefixes)):
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))


def every_ref_is_complete(root: Path) -> dict[str, str]:
    """ref -> digest. Fails unless each leads to a manifest whose chunks are all there and right."""
    store, found = DirectoryStore(root), {}
    if not root.exists():
        return {}
    for ref in refs.refs(store):
        manifest = read_manifest(Reader(store), ref.ref)
        held = {chunk: store.get(chunk.key, chunk.size) for _, chunk in manifest.chunks()}
        bad = [c.key for c, body in held.items() if body is None or hashlib.sha256(body).hexdigest() != c.sha256]
        assert not bad, f"{ref.ref}: {bad}"
        found[ref.ref] = ref.digest
    return found


def killed_everywhere(start: Path, work: Path, act: Callable[[DyingStore], object]) -> Iterator[Path]:
    """Kill `act` at each of its calls, every time over a fresh copy of the store `start`; yields what that left.

    The leases of the killed are old then, as they are when the next command may go on.
    """
    shutil.copytree(start, work)
    whole = DyingStore(work)
    act(whole)
    calls = whole.calls
    assert calls > 3
    for at in range(calls):
        shutil.rmtree(work)
        shutil.copytree(start, work)
        try:
            act(DyingStore(work, at))
        except Killed:
            pass
        else:  # threads may need fewer calls than the first time, never so many fewer
            assert at > calls - 5
        age(work, TIMING.expiry_s + 1, "leases/")
        yield work
