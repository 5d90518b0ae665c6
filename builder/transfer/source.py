"""Where objects come from: a folder, S3, GCS, Azure or HTTP, by one protocol.

A chunk is one whole object, asked for whole: servers differ in what they answer to a range, and no two requests can then
disagree. It passes through a window that the caller owns and reuses, so a transfer needs no more memory than its windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

from builder.errors import CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.transfer.disk import read_file, stream_file
from builder.transfer.http import Limits, Seen

if TYPE_CHECKING:
    from builder.transfer.checksum import Buffer

_T = TypeVar("_T")
__all__ = ["FolderSource", "Limits", "Source", "list_keys", "no_such_folder", "open_source", "public", "stream"]


class Source(Protocol):
    """A read-only view of a store.

    url: the store's address, with neither credentials nor query.
    """

    @property
    def url(self) -> str: ...

    def read(self, key: str, *, limit: int) -> Buffer | None:
        """The whole object, or None if the store answers that it is not there.

        limit: bytes; a larger object is not read.
        Raises IntegrityError if the object is larger than limit, RemoteError if the store refuses, times out or cannot
        be reached (`where`: key, url, status and code where the store sent them), CapabilityError if this user may not
        read the file.
        """


def stream(source: Source, key: str, window: memoryview, *, limit: int, seen: Seen) -> int | None:
    """The whole object in pieces: its bytes, or None if it is not there. Raises as Source.read, and what `seen` raises.

    seen(piece): every piece of it, in order; its bytes are good until it returns.
    window: the memory that the pieces pass through, from its start on and over again when it is full, so that an object no
    larger than the window lies in it at the end.
    A source that has no `stream` of its own is read, and the bytes are copied.
    """
    own = getattr(source, "stream", None)
    if own is not None:
        size: int | None = own(key, window, limit=limit, seen=seen)
        return size
    body = source.read(key, limit=limit)
    if body is None:
        return None
    view = memoryview(body)
    for at in range(0, len(view), len(window)):
        piece = window[: min(len(window), len(view) - at)]
        piece[:] = view[at : at + len(piece)]
        seen(piece)
    return len(view)


def open_source(
    url: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    credentials: Callable[[], Any] | None = None,
    limits: Limits | None = None,
) -> Source:
    """The store at `url`: a folder path, s3://bucket/prefix, gs://, az:// or http(s)://.

    endpoint_url: an S3-compatible server; it is addressed by path, and plain http is allowed if it says http.
    credentials: an obstore credential provider; None leaves it to obstore (environment, web identity, instance).
    Raises ConfigError for another scheme, RemoteError if the folder is not there. A remote store is not contacted yet.
    """
    if not url:
        raise ConfigError("the store's URL is empty", hint="use a folder or s3://bucket/prefix")
    if "://" not in url or url.startswith("file://"):
        return FolderSource(Path(url.removeprefix("file://")))
    from builder.transfer.objects import open_objects

    return open_objects(url, endpoint_url=endpoint_url, region=region, credentials=credentials, limits=limits)


def list_keys(source: Source, prefix: str) -> list[str] | None:
    """Keys that start with `prefix` (ends in "/"), sorted, or None where the source cannot list."""
    keys = getattr(source, "keys", None)
    found = keys(prefix) if keys else None
    return None if found is None else sorted(found)


def public(url: str) -> str:
    """`url` without user, password, query and fragment: fit for messages.

    >>> public("https://user:pw@host:9000/a?X-Amz-Signature=1")
    'https://host:9000/a'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if parts.netloc else url


class _SeenFailed(Exception):
    """`seen` raised an OSError."""


class FolderSource:
    """A store in a folder; keys are paths below it."""

    def __init__(self, folder: Path) -> None:
        """Raises RemoteError if there is no such folder: an empty store and a mistyped path differ."""
        self.folder = folder
        if not folder.is_dir():
            raise no_such_folder(folder)

    @property
    def url(self) -> str:
        return str(self.folder)

    def read(self, key: str, *, limit: int) -> Buffer | None:
        return self._open(key, lambda path: read_file(path, limit=limit))

    def stream(self, key: str, window: memoryview, *, limit: int, seen: Seen) -> int | None:
        failed: list[OSError] = []

        def guarded(piece: memoryview) -> None:
            try:
                seen(piece)
            except OSError as exc:  # of whoever writes the piece elsewhere: it says nothing of this file
                failed.append(exc)
                raise _SeenFailed from exc

        try:
            return self._open(key, lambda path: stream_file(path, window, limit, guarded))
        except _SeenFailed:
            raise failed[0] from None

    def keys(self, prefix: str) -> Iterable[str]:
        return (p.relative_to(self.folder).as_posix() for p in (self.folder / prefix).glob("**/*") if p.is_file())

    def _open(self, key: str, read: Callable[[Path], _T]) -> _T | None:
        if ".." in key.split("/") or key.startswith("/"):
            raise IntegrityError(f"{self.url}: key {key!r} leaves the store", where={"key": key, "url": self.url})
        try:
            return read(self.folder / key)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except PermissionError as exc:
            raise CapabilityError(
                f"{self.folder / key}: {exc.strerror}", hint="read it as a user who may", where={"key": key, "url": self.url}
            ) from exc
        except OSError as exc:
            raise RemoteError(f"{self.folder / key}: {exc.strerror}", where={"key": key, "url": self.url}) from exc


def no_such_folder(folder: Path) -> RemoteError:
    return RemoteError(f"{folder}: no such folder", hint="check the path of the store", where={"url": str(folder)})
