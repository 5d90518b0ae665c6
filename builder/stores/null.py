"""A store that keeps nothing: for benchmarks of reading and hashing, and for --dry-run over a store's answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from builder.errors import RemoteError
from builder.stores.base import Entry, Stored
from builder.transfer.checksum import Buffer
from builder.transfer.source import Source


class NullStore:
    url = "null:"
    keeps_nothing = True  # so it needs no leases (weights.lease)

    def size(self, key: str) -> int | None:
        return None

    def stat(self, key: str) -> Stored | None:
        return None

    def get(self, key: str, limit: int) -> Buffer | None:
        return None

    def put(self, key: str, data: Buffer, *, sha256: str, crc64nvme: str, absent: bool = False) -> None:
        """Forgotten."""

    def replace(self, key: str, data: Buffer, *, sha256: str, crc64nvme: str) -> None:
        """Forgotten."""

    def upload(self, key: str, file: BinaryIO, size: int) -> None:
        """Not even read."""

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        return iter(())

    def entries(self, prefix: str) -> Iterator[Entry]:
        return iter(())

    def delete(self, key: str) -> None:
        """There is nothing."""

    def source(self) -> Source:
        raise RemoteError("null: keeps nothing, so there is nothing to read")
