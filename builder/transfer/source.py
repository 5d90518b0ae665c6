"""Where objects come from: a folder, S3, GCS, Azure or HTTP. One read is one whole object, in one buffer.

Whole objects, never ranges: a store keeps checksums per object, S3 spreads objects over hash prefixes, and some servers
answer a range that spans the object with 200, which clients take for an error (rclone 1.75 does, obstore refuses it).

A read is bounded in memory by its `limit` and in time by `Limits`: connecting, silence, and a floor on the rate, because
a socket that trickles keeps every other time limit happy for days.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError, RemoteError

if TYPE_CHECKING:
    from builder.transfer.checksum import Buffer

SCHEMES = ("s3", "gs", "az", "http", "https")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>")
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")
_CAUSE = re.compile(r'"(dns error)"|"tcp connect error",.*?message: "([^"]+)"', re.DOTALL)
_SAID = {
    "Timeout": "timed out",
    "Interrupted": "connection lost in the middle of the body",
    "Request": "connection closed before an answer",
    "Decode": "answer could not be decoded",
}
_HINTS = {
    "NoSuchBucket": "make the bucket, or check its name and region",
    "SignatureDoesNotMatch": "check the secret key",
    "InvalidAccessKeyId": "check the access key",
    "RequestTimeTooSkewed": "set this machine's clock",
    "ExpiredToken": "renew the credentials",
    "PermanentRedirect": "set the bucket's own region",
    "AuthorizationHeaderMalformed": "set the bucket's own region",
}


_STORE_WIDE = frozenset({"NoSuchBucket", "SignatureDoesNotMatch", "InvalidAccessKeyId", "RequestTimeTooSkewed", "ExpiredToken"})
_PROVIDERS = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}  # where no endpoint is given


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


@dataclass(frozen=True)
class Limits:
    """How long a read may take. Seconds; floor_bytes_s: the least rate, measured over windows of window_s.

    The floor is a fifth of what each of 16 connections gets of a 10 Mbit/s line (78 KB/s); object stores give each of
    theirs about 19 MB/s (0.6 GB/s over 32, the slowest field report seen). Below it, a fresh connection is the better bet.
    """

    connect_s: float = 10.0
    silence_s: float = 20.0
    floor_bytes_s: int = 16 << 10
    window_s: float = 30.0


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
        if ".." in key.split("/") or key.startswith("/"):
            raise IntegrityError(f"{self.url}: key {key!r} leaves the store", where={"key": key, "url": self.url})
        try:
            return read_file(self.folder / key, limit=limit)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except PermissionError as exc:
            raise CapabilityError(
                f"{self.folder / key}: {exc.strerror}", hint="read it as a user who may", where={"key": key, "url": self.url}
            ) from exc
        except OSError as exc:
            raise RemoteError(f"{self.folder / key}: {exc.strerror}", where={"key": key, "url": self.url}) from exc

    def keys(self, prefix: str) -> Iterable[str]:
        return (p.relative_to(self.folder).as_posix() for p in (self.folder / prefix).glob("**/*") if p.is_file())


class ObjectSource:
    """A store behind obstore. Thread-safe: one client, one connection per read in flight."""

    def __init__(
        self, url: str, *, endpoint_url: str | None, region: str | None, credentials: Callable[[], Any] | None, limits: Limits
    ) -> None:
        from obstore.exceptions import BaseError

        self._url = url
        self.endpoint = public(endpoint_url or (url if url.startswith("http") else _PROVIDERS[urlsplit(url).scheme]))
        self.limits = limits
        self._clock: Callable[[], float] = time.monotonic
        try:
            self._store = _client(url, endpoint_url, region, credentials, limits)
        except (BaseError, ValueError) as exc:
            raise ConfigError(f"{self.url}: {_first_line(exc)}", hint="check the store's URL, endpoint and region") from exc

    @property
    def url(self) -> str:
        return public(self._url)

    def read(self, key: str, *, limit: int) -> Buffer | None:
        import obstore
        from obstore.exceptions import BaseError

        try:
            answer = obstore.get(self._store, key)
            size = answer.meta["size"]
            if size > limit:
                raise IntegrityError(
                    f"{self.url}/{key}: object has {size} bytes, expected at most {limit}",
                    where={"key": key, "url": self.url, "size": size},
                )
            return self._fill(answer.stream(min_chunk_size=1), size, key)
        except FileNotFoundError as exc:
            if "NoSuchBucket" in str(exc):
                raise self._error(key, exc) from exc
            return None
        except (BaseError, OSError, ValueError) as exc:
            raise self._error(key, exc) from exc

    def keys(self, prefix: str) -> Iterable[str] | None:
        """Sorted keys below `prefix`, or None where the server cannot list (plain HTTP)."""
        import obstore
        from obstore.exceptions import BaseError

        if urlsplit(self._url).scheme in ("http", "https"):
            return None
        try:
            return [entry["path"] for batch in obstore.list(self._store, prefix.rstrip("/")) for entry in batch]
        except (BaseError, OSError, ValueError) as exc:
            raise self._error(prefix, exc) from exc

    def _fill(self, pieces: Iterable[Any], size: int, key: str) -> bytearray:
        """One buffer with all pieces. Raises RemoteError if they come too slowly, or are not `size` bytes together."""
        body = bytearray(size)
        view, at = memoryview(body), 0
        mark, mark_at = self._clock(), 0
        for piece in pieces:
            end = at + len(piece)
            if end > size:
                raise self._broken(key, f"body is longer than the {size} bytes announced")
            view[at:end] = memoryview(piece)
            at = end
            now = self._clock()
            if now - mark >= self.limits.window_s:
                if (at - mark_at) / (now - mark) < self.limits.floor_bytes_s:
                    raise self._broken(key, f"stalled: {at - mark_at} bytes in {now - mark:.0f} s, {at} of {size} received")
                mark, mark_at = now, at
        if at != size:
            raise self._broken(key, f"body ended after {at} of {size} bytes")
        return body

    def _broken(self, key: str, what: str) -> RemoteError:
        hint = f"run again; check the line to {self.endpoint}"
        return RemoteError(f"{self.url}/{key}: {what}", hint=hint, where=self._where(key))

    def _where(self, key: str) -> dict[str, Any]:
        return {"key": key, "url": self.url, "endpoint": self.endpoint}

    def _error(self, key: str, exc: Exception) -> BuilderError:
        said = str(exc)
        status, code = _STATUS.search(said), _CODE.search(said)
        where = self._where(key)
        if status:
            where["status"] = int(status[1])
        if code:
            where["code"] = code[1]
        what = " ".join(part for part in (status[1] if status else "", code[1] if code else "") if part) or _first_line(exc)
        hint = (_HINTS.get(code[1], "") if code else "") or _hint(where.get("status"), self.endpoint)
        at = self.url if code and code[1] in _STORE_WIDE else f"{self.url}/{key}"
        return RemoteError(f"{at}: {what}", hint=hint, where=where)


def no_such_folder(folder: Path) -> RemoteError:
    return RemoteError(f"{folder}: no such folder", hint="check the path of the store", where={"url": str(folder)})


def read_file(path: Path, *, limit: int) -> bytearray:
    """The file in one buffer. Raises IntegrityError if it is larger than limit, OSError; IsADirectoryError for any other
    kind of file, which is not opened for good: a pipe in a store must not hang its reader.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        entry = os.fstat(fd)
        if not stat.S_ISREG(entry.st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a regular file", str(path))
        if entry.st_size > limit:
            raise IntegrityError(
                f"{path}: {entry.st_size} bytes, expected at most {limit}", where={"file": str(path), "size": entry.st_size}
            )
        body = bytearray(entry.st_size)
        del body[read_into(fd, memoryview(body), 0) :]
        return body
    finally:
        os.close(fd)


def read_into(fd: int, view: memoryview, offset: int) -> int:
    """Fill `view` from `offset` on. Returns the bytes read; fewer than asked only at the end of the file."""
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if not got:
            break
        done += got
    return done


def _client(
    url: str, endpoint_url: str | None, region: str | None, credentials: Callable[[], Any] | None, limits: Limits
) -> Any:
    """The obstore client. Its own retries are off: retry.py's budget would otherwise be multiplied by them."""
    from obstore.store import from_url

    base = endpoint_url or url
    options: dict[str, Any] = {
        "client_options": {
            "connect_timeout": timedelta(seconds=limits.connect_s),
            "read_timeout": timedelta(seconds=limits.silence_s),
            "timeout": timedelta(days=1),  # the whole request: bounded by the floor on the rate instead
            "allow_http": base.startswith("http://"),
        },
        "retry_config": {
            "max_retries": 0,
            "retry_timeout": timedelta(seconds=1),
            "backoff": {"init_backoff": timedelta(milliseconds=10), "max_backoff": timedelta(milliseconds=10), "base": 2},
        },
    }
    if credentials is not None:
        options["credential_provider"] = credentials
    if url.startswith("s3://"):
        if endpoint_url:
            options |= {"endpoint": endpoint_url.rstrip("/"), "virtual_hosted_style_request": False}
        if region:
            options["region"] = region
    return from_url(url, **options)


def _first_line(exc: Exception) -> str:
    """What obstore said, in one line: no debug dump, no query string, no timing. The cause is taken from the dump."""
    said, _, dump = str(exc).partition("\n")
    kind, cause = _KIND.search(dump), _CAUSE.search(dump)
    if kind and kind[1] == "Connect":
        return f"cannot connect: {cause[1] or cause[2]}" if cause else "cannot connect"
    if kind and kind[1] in _SAID:
        return _SAID[kind[1]]
    return re.sub(r" in [\d.]+[mµn]?s\b", "", re.sub(r"\?\S*", "", said))


def _hint(status: int | None, endpoint: str) -> str:
    """status: None where no answer came."""
    if status in (401, 403):
        return "check the credentials and what they may read"
    if status in (429, 503):
        return f"lower the concurrency, then run again; {endpoint} is overloaded"
    if status:
        return f"run again; if it stays, look at what {endpoint} logs"
    return f"check that {endpoint} can be reached from here, and the proxy settings"
