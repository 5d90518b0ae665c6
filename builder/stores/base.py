"""What a store of chunks must do: nothing half-written is visible, `put` never overwrites, faults are named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from builder.errors import IntegrityError
from builder.transfer.checksum import Buffer
from builder.transfer.source import Source


@dataclass(frozen=True)
class Stored:
    """What the store itself says of an object. sha256, crc64nvme: hex, or "" where it keeps none for the whole object."""

    size: int
    sha256: str = ""
    crc64nvme: str = ""


@dataclass(frozen=True)
class Entry:
    """One object of a listing. size: bytes.  modified: when it was last written, in epoch seconds by the store's own clock
    (S3 tells whole seconds).
    """

    key: str
    size: int
    modified: float


class Store(Protocol):
    """Objects by key. Thread-safe. Errors: RemoteError, CapabilityError (disk full, permission), IntegrityError."""

    @property
    def url(self) -> str:
        """The store's address, with neither credentials nor query."""

    def size(self, key: str) -> int | None:
        """Bytes of the object, or None where there is none."""

    def stat(self, key: str) -> Stored | None:
        """Size and the digests that the store keeps; no byte is read."""

    def get(self, key: str, limit: int) -> Buffer | None:
        """The object, or None where there is none. Raises IntegrityError if it is larger than limit bytes."""

    def put(self, key: str, data: Buffer, *, sha256: str, crc64nvme: str, absent: bool = False) -> None:
        """Add an object, whole or not at all. One that is there stays; of another size: IntegrityError.

        absent: the caller has just seen that there is none, and its key is its digest: then the store may leave out the
        look, and an equal object that came meanwhile may be written over.
        """

    def replace(self, key: str, data: Buffer, *, sha256: str, crc64nvme: str) -> None:
        """Put in place of what is there, atomically: for refs, and to repair."""

    def upload(self, key: str, file: BinaryIO, size: int) -> None:
        """Put `size` bytes of an open file, from where it stands, in place of what is there; bounded memory.

        Raises IntegrityError, and leaves nothing, if the file ends early.
        """

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size) of every object whose key starts with prefix, sorted; objects being written do not show."""

    def entries(self, prefix: str) -> Iterator[Entry]:
        """As keys, with the time of each object's last write. An object shows as soon as its write has returned."""

    def delete(self, key: str) -> None:
        """Remove the object; not an error where there is none."""

    def source(self) -> Source:
        """The same store, for reading, as the image reads it: same endpoint, region and credentials."""


class Reader:
    """A store as a Source, over the store's own client."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def url(self) -> str:
        return self._store.url

    def read(self, key: str, *, limit: int) -> Buffer | None:
        return self._store.get(key, limit)

    def keys(self, prefix: str) -> list[str]:
        return [key for key, _ in self._store.keys(prefix)]


def other_size(url: str, key: str, found: int, expected: int) -> IntegrityError:
    """The object is there with another size than its digest implies, so it is not those bytes."""
    return IntegrityError(
        f"{url}/{key}: the store has {found} bytes there, expected {expected}",
        hint="run `builder weights repair`",
        where={"object": key, "found": found, "expected": expected},
    )


def too_large(url: str, key: str, found: int, limit: int) -> IntegrityError:
    return IntegrityError(f"{url}/{key}: object has {found} bytes, expected at most {limit}", where={"key": key, "size": found})
