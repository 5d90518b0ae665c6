"""Objects behind HTTP: S3, GCS, Azure, or any web server.

obstore finds the credentials (environment, web identity, instance), signs a URL for each object, and lists; the bytes come
through `http`, at half the CPU. Where a URL cannot be signed for every kind of credential (GCS, Azure), or the signed one is
refused for want of a header that obstore would add (requester pays), obstore transfers them itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from builder.errors import BuilderError, ConfigError, IntegrityError, RemoteError
from builder.transfer.http import Answer, Broken, Client, Limits, Seen, TooLarge
from builder.transfer.link import MOST
from builder.transfer.source import public

if TYPE_CHECKING:
    from builder.transfer.checksum import Buffer

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
        self._ranges = True  # until the server answers a range with the whole object
        self._helpers: ThreadPoolExecutor | None = None
        try:
            self._store = _client(url, endpoint_url, region, credentials, limits)
        except (BaseError, ValueError) as exc:
            raise ConfigError(f"{self.url}: {_first_line(exc)}", hint="check the store's URL, endpoint and region") from exc

    @property
    def url(self) -> str:
        return public(self._url)

    def read(self, key: str, *, limit: int) -> Buffer | None:
        return self._get(key, None, limit, None)

    def fill(self, key: str, into: memoryview, *, seen: Seen, parts: int = 1) -> int | None:
        """As `source.fill`. parts: ranges fetched at once, of an object that has exactly the size of `into`."""
        if parts > 1 and self._direct and self._ranges:
            size = self._fill_in_parts(key, into, parts)
            if size is None or size == len(into):
                if size:
                    seen(into)
                return size
        body = self._get(key, into, len(into), seen)
        return None if body is None else len(body)

    def keys(self, prefix: str) -> Iterable[str] | None:
        """Sorted keys below `prefix`, or None where the server cannot list (plain HTTP)."""
        import obstore
        from obstore.exceptions import BaseError

        if self._scheme in ("http", "https"):
            return None
        try:
            return [entry["path"] for batch in obstore.list(self._store, prefix.rstrip("/")) for entry in batch]
        except (BaseError, OSError, ValueError) as exc:
            raise self._error(prefix, exc) from exc

    def _get(self, key: str, into: memoryview | None, limit: int, seen: Seen | None) -> memoryview | None:
        if not self._direct:
            return self._through(key, into, limit, seen)
        answer, view = self._ask(key, into, limit, None, seen)
        if answer.status == 200:
            return view
        if answer.status in (404, 410) and b"NoSuchBucket" not in answer.body:
            return None
        refusal = self._refused(key, answer)
        if self._scheme == "s3" and answer.status in (400, 403) and refusal.where.get("code") not in _STORE_WIDE:
            return self._second_opinion(key, into, limit, seen, refusal)
        raise refusal

    def _second_opinion(
        self, key: str, into: memoryview | None, limit: int, seen: Seen | None, refusal: RemoteError
    ) -> memoryview | None:
        """obstore's own request, with headers that a signed URL does not carry. Only where it succeeds is it asked on."""
        try:
            body = self._through(key, into, limit, seen)
        except RemoteError as exc:
            raise refusal from exc
        self._direct = False
        return body

    def _ask(
        self, key: str, into: memoryview | None, limit: int, span: tuple[int, int] | None, seen: Seen | None
    ) -> tuple[Answer, memoryview]:
        try:
            return self._http.get(self._address(key), into, limit=limit, span=span, seen=seen)
        except TooLarge as exc:
            raise IntegrityError(
                f"{self.url}/{key}: object has {exc.size if exc.size >= 0 else 'more'} bytes, expected at most {limit}",
                where={"key": key, "url": self.url, "size": exc.size},
            ) from exc
        except Broken as exc:
            what = str(exc)
            hint = f"run again; check the line to {self.endpoint}"
            if what.startswith(("cannot connect", "timed out", "connection closed before")):
                hint = _hint(None, self.endpoint)
            raise RemoteError(f"{self.url}/{key}: {what}", hint=hint, where=self._where(key)) from exc

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

    def _fill_in_parts(self, key: str, into: memoryview, parts: int) -> int | None:
        """Bytes that came by `parts` ranges at once; None if the object is not there; 0 where ranges do not work."""
        if self._helpers is None:
            self._helpers = ThreadPoolExecutor(MOST, thread_name_prefix="range")
        step = -(-len(into) // parts)
        spans = [(at, min(at + step, len(into))) for at in range(0, len(into), step)]

        def one(span: tuple[int, int]) -> tuple[Answer, int]:
            try:
                answer, view = self._ask(key, into[span[0] : span[1]], len(into), span, None)
            except IntegrityError:  # larger than the range: a server that does not know ranges sends the whole object
                return Answer(200), 0
            return answer, len(view)

        running = [self._helpers.submit(one, span) for span in spans]
        wait(running)  # even if one fails: the others write into a buffer that then serves another chunk
        answers = [future.result() for future in running]
        for (answer, got), (start, end) in zip(answers, spans, strict=True):
            if answer.status == 404 and b"NoSuchBucket" not in answer.body:
                return None
            if answer.status not in (200, 206, 416):
                raise self._refused(key, answer)
            if answer.status != 206 or got != end - start or answer.total != len(into):
                self._ranges = answer.status == 206
                return 0
        return len(into)

    def _through(self, key: str, into: memoryview | None, limit: int, seen: Seen | None) -> memoryview | None:
        """The object by obstore's own transfer. Its silence is bounded, its rate is not."""
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
            body = memoryview(answer.bytes())
        except FileNotFoundError as exc:
            if "NoSuchBucket" in str(exc):
                raise self._error(key, exc) from exc
            return None
        except (BaseError, OSError, ValueError) as exc:
            raise self._error(key, exc) from exc
        if into is not None:
            into[: len(body)] = body
            body = into[: len(body)]
        if seen is not None:
            seen(body)
        return body

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
