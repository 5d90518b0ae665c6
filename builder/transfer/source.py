"""Where objects come from: a folder, S3, GCS, Azure or HTTP, by one protocol.

A chunk is one whole object, in one buffer that the caller owns and reuses. A large one may be fetched by several ranges at
once when the link wants more requests than there are buffers (see `link`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

from builder.errors import CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.transfer.disk import fill_from_file, read_file
from builder.transfer.http import Limits, Seen

if TYPE_CHECKING:
    from builder.transfer.checksum import Buffer

_T = TypeVar("_T")
SCHEMES = ("s3", "gs", "az", "http", "https")
__all__ = ["FolderSource", "Limits", "Source", "fill", "list_keys", "no_such_folder", "open_source", "public"]


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


def fill(source: Source, key: str, into: memoryview, *, seen: Seen, parts: int = 1) -> int | None:
    """The whole object at the start of `into`: its bytes, or None if it is not there. Raises as Source.read.

    seen(piece): every piece of it, in order, as it comes; after all of it where `parts` requests share the work.
    A source that has no `fill` of its own is read, and the bytes are copied.
    """
    own = getattr(source, "fill", None)
    if own is not None:
        size: int | None = own(key, into, seen=seen, parts=parts)
        return size
    body = source.read(key, limit=len(into))
    if body is None:
        return None
    seen(memoryview(body))
    if len(body) <= len(into):  # a longer one is not what `seen` expects either
        into[: len(body)] = body
    return len(body)


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
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme in ("", "file"):
        return FolderSource(Path(url.removeprefix("file://")))
    if scheme not in SCHEMES:
        known = ", ".join(f"{s}://" for s in SCHEMES)
        raise ConfigError(f"{public(url)}: unknown scheme {scheme}://; expected a folder or {known}")
    from builder.transfer.objects import ObjectSource

    return ObjectSource(url, endpoint_url=endpoint_url, region=region, credentials=credentials, limits=limits or Limits())


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

    def fill(self, key: str, into: memoryview, *, seen: Seen, parts: int = 1) -> int | None:
        return self._open(key, lambda path: fill_from_file(path, into, seen))

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
