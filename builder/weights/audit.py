"""Objects of a store read to their end and compared, by whatever reads for a pull, in a fixed amount of memory."""

from __future__ import annotations

from collections.abc import Callable

from builder.errors import IntegrityError
from builder.stores.base import Store
from builder.transfer.buffers import WINDOW_BYTES, Buffers
from builder.transfer.checksum import Digests
from builder.transfer.retry import Policy, retrying

Wrong = tuple[str, str] | None
"""(expected, found) of the first thing that is not as it should be."""


class Audit:
    """A store to be read by `workers` threads, one small window each. Thread-safe."""

    def __init__(self, store: Store, workers: int) -> None:
        self._source = retrying(store.source(), Policy(body_tries=2))  # twice, to tell a bad object from a bad wire
        self._windows = Buffers(workers * WINDOW_BYTES, most=workers)

    def wrong(self, key: str, size: int, differs: Callable[[Digests], Wrong]) -> Wrong:
        """What is wrong with the object, which should have `size` bytes; None if nothing is.

        differs: what is wrong by its digests.  Raises RemoteError, CapabilityError where it cannot be read.
        """

        def check(digests: Digests) -> None:
            if wrong := differs(digests):
                raise IntegrityError(wrong[1], where={"expected": wrong[0]})

        try:
            with self._windows.one() as window:
                found = self._source.stream(key, window, limit=size, check=check)
        except IntegrityError as exc:
            words = f"{exc.where['size']} bytes" if "size" in exc.where else exc.message
            return exc.where.get("expected", f"{size} bytes"), words
        return (f"{size} bytes", "no object") if found is None else None
