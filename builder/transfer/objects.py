"""Objects behind HTTP: S3, GCS, Azure, or any web server.

obstore finds the credentials (environment, web identity, instance), signs a URL for each object, and lists; the bytes come
through `http`, at half the CPU. Where a URL cannot be signed for every kind of credential (GCS, Azure), or the signed one is
refused for want of a header that obstore would add (requester pays), obstore transfers them itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from builder.errors import BuilderError, ConfigError, IntegrityError, RemoteError
from builder.transfer.http import PIECE_BYTES, Answer, Broken, Client, Floor, Limits, Seen, TooLarge
from builder.transfer.source import public

if TYPE_CHECKING:
    from builder.transfer.checksum import Buffer

SCHEMES = ("s3", "gs", "az", "http", "https")
SIGNED_S = 600  # a signed URL is used at once; the rest is for clocks that differ
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


def open_objects(
    url: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    credentials: Callable[[], Any] | None = None,
    limits: Limits | None = None,
) -> ObjectSource:
    """As `source.open_source`, for anything but a folder."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        known = ", ".join(f"{s}://" for s in SCHEMES)
        raise ConfigError(f"{public(url)}: unknown scheme {scheme}://; expected a folder or {known}")
    return ObjectSource(url, endpoint_url=endpoint_url, region=region, credentials=credentials, limits=limits or Limits())


class ObjectSource:
    """A store of objects. Thread-safe: one client, one connection per request in flight."""

    def __init__(
        self, url: str, *, endpoint_url: str | None, region: str | None, credentials: Callable[[], Any] | None, limits: Limits
    ) -> None:
        from obstore.exceptions import BaseError

        self._url = url
        self._scheme = urlsplit(url).scheme
        self.endpoint = public(endpoint_url or (url if url.startswith("http") else _PROVIDERS[self._scheme]))
        self.limits = limits
        self._http = Client(limits)
        self._direct = self._scheme in ("s3", "http", "https")
        try:
            self._store = _client(url, endpoint_url, region, credentials, limits)
        except (BaseError, ValueError) as exc:
            raise ConfigError(f"{self.url}: {_first_line(exc)}", hint="check the store's URL, endpoint and region") from exc

    @property
    def url(self) -> str:
        return public(self._url).rstrip("/")

    def read(self, key: str, *, limit: int) -> Buffer | None:
        body = bytearray()  # it grows: the limit may be a thousand times the object
        size = self.stream(key, memoryview(bytearray(min(max(1, limit), PIECE_BYTES))), limit=limit, seen=body.extend)
        return None if size is None else body

    def stream(self, key: str, window: memoryview, *, limit: int, seen: Seen) -> int | None:
        """As `source.stream`."""
        if not self._direct:
            return self._through(key, window, limit, seen)
        answer = self._ask(key, window, limit, seen)
        if answer.status == 200:
            return answer.size
        if answer.status in (404, 410) and b"NoSuchBucket" not in answer.body:
            return None
        refusal = self._refused(key, answer)
        if self._scheme == "s3" and answer.status in (400, 403) and refusal.where.get("code") not in _STORE_WIDE:
            return self._second_opinion(key, window, limit, seen, refusal)
        raise refusal

    def keys(self, prefix: str) -> Iterable[str] | None:
        """Sorted keys below `prefix`, or None where the server cannot list (plain HTTP)."""
        found = self.entries(prefix)
        return None if found is None else [key for key, _, _ in found]

    def entries(self, prefix: str) -> list[tuple[str, int, float]] | None:
        """(key, bytes, time of the last write in epoch seconds) of every object below `prefix` (a folder), as `keys`."""
        import obstore
        from obstore.exceptions import BaseError

        if self._scheme in ("http", "https"):
            return None
        try:
            listed = [entry for batch in obstore.list(self._store, prefix.rstrip("/")) for entry in batch]
        except (BaseError, OSError, ValueError) as exc:
            raise self._error(prefix, exc) from exc
        return sorted((entry["path"], entry["size"], entry["last_modified"].timestamp()) for entry in listed)

    def size(self, key: str) -> int | None:
        """Bytes of the object, or None if it is not there; no byte of it is read."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            size: int = obstore.head(self._store, key)["size"]
        except FileNotFoundError:
            return None
        except (BaseError, OSError, ValueError) as exc:
            raise self._error(key, exc) from exc
        return size

    def _second_opinion(self, key: str, window: memoryview, limit: int, seen: Seen, refusal: RemoteError) -> int | None:
        """obstore's own request, with headers that a signed URL does not carry. Only where it succeeds is it asked on."""
        try:
            size = self._through(key, window, limit, seen)
        except RemoteError as exc:
            raise refusal from exc
        self._direct = False
        return size

    def _ask(self, key: str, window: memoryview, limit: int, seen: Seen) -> Answer:
        try:
            return self._http.get(self._address(key), window, limit=limit, seen=seen)
        except TooLarge as exc:
            raise self._too_large(key, exc.size, limit) from exc
        except Broken as exc:
            raise self._broken(key, exc) from exc

    def _address(self, key: str) -> str:
        """Where to get the object: for S3 a URL that carries its own signature, made for this request."""
        import obstore
        from obstore.exceptions import BaseError

        if self._scheme != "s3":
            parts = urlsplit(self._url)
            return urlunsplit((*parts[:2], f"{parts.path.rstrip('/')}/{quote(key, safe='/@')}", parts.query, ""))
        try:
            return obstore.sign(self._store, "GET", key, timedelta(seconds=SIGNED_S))
        except (BaseError, OSError, ValueError) as exc:
            raise self._error(key, exc) from exc

    def _through(self, key: str, window: memoryview, limit: int, seen: Seen) -> int | None:
        """The object by obstore's own transfer."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            answer = obstore.get(self._store, key)
            pieces = iter(answer.stream(min_chunk_size=PIECE_BYTES))
            size = answer.meta["size"]
        except FileNotFoundError as exc:
            if "NoSuchBucket" in str(exc):
                raise self._error(key, exc) from exc
            return None
        except (BaseError, OSError, ValueError) as exc:
            raise self._error(key, exc) from exc
        if size > limit:
            raise self._too_large(key, size, limit)
        total, floor = 0, Floor(self.limits)
        while True:
            try:
                piece = next(pieces, None)
                floor.require(total + len(piece or b""))
            except (BaseError, OSError, ValueError) as exc:
                raise self._error(key, exc) from exc
            except Broken as exc:
                raise self._broken(key, exc) from exc
            if piece is None:
                return total
            if total + len(piece) > limit:
                raise self._too_large(key, -1, limit)
            total += _pass(memoryview(piece), window, total, seen)

    def _too_large(self, key: str, size: int, limit: int) -> IntegrityError:
        return IntegrityError(
            f"{self.url}/{key}: object has {size if size >= 0 else 'more'} bytes, expected at most {limit}",
            where={"key": key, "url": self.url, "size": size},
        )

    def _broken(self, key: str, exc: Broken) -> RemoteError:
        what = str(exc)
        hint = f"run again; check the line to {self.endpoint}"
        if what.startswith(("cannot connect", "timed out", "connection closed before")):
            hint = _hint(None, self.endpoint)
        return RemoteError(f"{self.url}/{key}: {what}", hint=hint, where=self._where(key))

    def _where(self, key: str) -> dict[str, Any]:
        return {"key": key, "url": self.url, "endpoint": self.endpoint}

    def _refused(self, key: str, answer: Answer) -> RemoteError:
        """What an answer other than the object means."""
        found = _CODE.search(answer.body.decode("utf-8", "replace"))
        after = answer.headers.get("retry-after", "")
        return self._remote(key, answer.status, found[1] if found else "", retry_after=after)

    def _error(self, key: str, exc: Exception) -> BuilderError:
        """What an error of obstore means."""
        said = str(exc)
        status, code = _STATUS.search(said), _CODE.search(said)
        return self._remote(key, int(status[1]) if status else 0, code[1] if code else "", what=_first_line(exc))

    def _remote(self, key: str, status: int, code: str, *, what: str = "", retry_after: str = "") -> RemoteError:
        where = self._where(key)
        if status:
            where["status"] = status
        if code:
            where["code"] = code
        if retry_after.isdecimal():
            where["retry_after"] = int(retry_after)
        said = " ".join(part for part in (str(status) if status else "", code) if part) or what
        hint = _HINTS.get(code, "") or _hint(status or None, self.endpoint)
        at = self.url if code in _STORE_WIDE else f"{self.url}/{key}"
        return RemoteError(f"{at}: {said}", hint=hint, where=where)


def _pass(piece: memoryview, window: memoryview, total: int, seen: Seen) -> int:
    """The piece through the window, `total` bytes of the object having passed before; its bytes."""
    at = 0
    while at < len(piece):
        start = (total + at) % len(window)
        part = piece[at : at + len(window) - start]
        window[start : start + len(part)] = part
        seen(window[start : start + len(part)])
        at += len(part)
    return at


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
    if url.startswith("s3://") and region:
        options["region"] = region
    if endpoint_url:
        options |= _at(url.partition("://")[0], endpoint_url.rstrip("/"))
    return from_url(url, **options)


def _at(scheme: str, endpoint: str) -> dict[str, Any]:
    """obstore's options for a server other than the provider's."""
    if scheme == "s3":
        return {"endpoint": endpoint, "virtual_hosted_style_request": False}
    if scheme == "az":
        return {"endpoint": endpoint}
    if scheme == "gs":  # which has no option for it but this key: a server so named is asked without credentials
        key = {"gcs_base_url": endpoint, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        return {"service_account_key": json.dumps(key)}
    return {}


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
