"""Byte ranges of one file at one commit of the hub, through the session of its own client (proxies, CA, offline mode).

    GET <endpoint>/<repository>/resolve/<commit>/<path>      Range, token
      206, 200   the bytes: files kept in git, and mirrors
      302        to a CDN, by a URL that is signed for about an hour; it is asked without the token and kept for the next
                 ranges, because the hub counts requests to /resolve/ (huggingface.co/docs/hub/rate-limits)

Redirects are followed here, hop by hop: the token goes to the hub's own origin only. Files in xet storage are served the
same way, by the hub's bridge; for very large ones the bridge was seen to answer 400 (github.com/huggingface/huggingface_hub
issue 4330), which the error's hint speaks of. A mirror that ignores Range (200) is read up to the wanted end and no
further, for files up to SKIP_BYTES.
"""

from __future__ import annotations

import importlib
import io
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from builder.errors import RemoteError
from builder.models.source import changed

if TYPE_CHECKING:
    from builder.models.hub_file import HubFile

HOPS = 5
SKIP_BYTES = 256 << 20  # 16 MiB chunks of a file of that size read 2 GiB in all where ranges are ignored
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")
_DIGEST = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
EXPIRED = frozenset({400, 401, 403, 404, 410})  # what CDNs answer to a signature that is over


class Token:
    """A token for this process alone: no text form shows it, and a pickle leaves it out (the client's own login counts)."""

    __slots__ = ("value",)

    def __init__(self, value: str = "") -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Token()"

    def __reduce__(self) -> tuple[type[Token], tuple[str]]:
        return Token, ("",)


@dataclass(frozen=True)
class _Place:
    """Where to ask. ours: the hub itself, which gets the token.  etag: of an earlier answer from here, or ""."""

    url: str
    ours: bool
    etag: str = ""


class Ranges:
    """Reads of one file. Thread-safe; each read is one try, over as many redirects as it takes."""

    def __init__(self, file: HubFile) -> None:
        from huggingface_hub import hf_hub_url

        self.file = file
        url = hf_hub_url(file.repo, file.path, revision=file.commit, endpoint=file.endpoint)
        self._hub = _Place(url, ours=True)
        self._known: _Place | None = None
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises RemoteError (`where`: status, retry_after), IntegrityError where it is another file."""
        with self._lock:
            known = self._known
        if known is not None:
            try:
                body = self._ask(known, offset, size, expired_ok=True)
            except RemoteError:  # the next try asks the hub, which may know a better place
                self._forget(known)
                raise
            if isinstance(body, bytes):
                return body
            self._forget(known)
        place = self._hub
        for _ in range(HOPS):
            answer = self._ask(place, offset, size)
            if isinstance(answer, bytes):
                return answer
            assert answer is not None  # only with expired_ok
            place = answer
        raise self._failed(f"more than {HOPS} redirects")

    def _ask(self, place: _Place, offset: int, size: int, *, expired_ok: bool = False) -> bytes | _Place | None:
        """The bytes, or the place that the answer points to, or None where the place is no longer good."""
        with self._answer(place, offset, size) as answer:
            if place.ours:
                self._require_same(answer)
            if answer.has_redirect_location:
                return self._next(place, answer.headers["Location"])
            if expired_ok and answer.status_code in EXPIRED:
                return None
            if answer.status_code not in (200, 206):
                raise self._refused(place, answer)
            skip = self._start(answer, offset, size)
            pieces = self._rated(answer.iter_bytes())
            body = self._body(pieces, skip, size, whole=skip + size == self.file.size or answer.status_code == 206)
        self._remember(place, answer)
        return body

    @contextmanager
    def _answer(self, place: _Place, offset: int, size: int) -> Iterator[Any]:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported lazily

        http, limits = library(), self.file.limits
        headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
        if place.ours:
            headers = build_hf_headers(token=self.file.token.value or None, headers=headers)
        wait = http.Timeout(limits.silence_s, connect=limits.connect_s, pool=None)
        try:
            with get_session().stream("GET", place.url, headers=headers, timeout=wait, follow_redirects=False) as answer:
                yield answer
        except (http.HTTPError, http.InvalidURL, OSError) as exc:
            raise self._failed(said(exc)) from exc

    def _require_same(self, answer: Any) -> None:
        """What the hub says about the file, where it says it, is what it said when the model was resolved."""
        if answer.status_code >= 400:
            return
        file, headers = self.file, answer.headers
        commit = headers.get("X-Repo-Commit", file.commit)
        if commit != file.commit:
            raise changed(file, f"the hub answers with commit {commit}")
        size = headers.get("X-Linked-Size", str(file.size))
        if size != str(file.size):
            raise changed(file, f"it had {file.size} bytes, now {size}")
        etag, wanted = _etag(headers.get("X-Linked-ETag") or headers.get("ETag")), file.sha256 or file.blob_id
        if _DIGEST.match(etag) and len(etag) == len(wanted) and etag != wanted:
            raise changed(file, f"its digest was {wanted}, now {etag}")

    def _next(self, place: _Place, location: str) -> _Place:
        url = urljoin(place.url, location)
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise self._failed("redirected to no address")
        return _Place(url, ours=place.ours and _origin(url) == _origin(self._hub.url))

    def _start(self, answer: Any, offset: int, size: int) -> int:
        """How many bytes of the body come before `offset`."""
        file = self.file
        if answer.status_code == 200:
            if offset and file.size > SKIP_BYTES:
                raise self._failed("the server ignores Range", hint=f"{self._by_client()}, or use another endpoint")
            return offset
        match = _RANGE.match(answer.headers.get("Content-Range", ""))
        if not match:
            raise self._failed("206 without a Content-Range")
        first, last, total = match.groups()
        if total not in ("*", str(file.size)):
            raise changed(file, f"it had {file.size} bytes, now {total}")
        if (int(first), int(last)) != (offset, offset + size - 1):
            raise self._failed(f"asked for bytes {offset}-{offset + size - 1}, got {first}-{last}")
        return 0

    def _rated(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The same pieces. Raises RemoteError where they come slower than the floor, measured over windows."""
        limits, mark, got = self.file.limits, time.monotonic(), 0
        for piece in pieces:
            yield piece
            got += len(piece)
            spent = time.monotonic() - mark
            if spent >= limits.window_s:
                if got / spent < limits.floor_bytes_s:
                    raise self._failed(f"stalled: {got} bytes in {spent:.0f} s")
                mark, got = time.monotonic(), 0

    def _body(self, pieces: Iterable[bytes], skip: int, size: int, *, whole: bool) -> bytes:
        """`size` bytes after the first `skip`. whole: the body ends with them.

        BytesIO, because its value is handed over without a copy: a chunk is in memory once.
        """
        out, left, over = io.BytesIO(), skip, 0
        for piece in pieces:
            cut = min(left, len(piece))
            left -= cut
            take = memoryview(piece)[cut:][: size - out.tell()]
            out.write(take)
            over += len(piece) - cut - len(take)
            if over or (not whole and out.tell() == size):
                break
        if whole and over:
            raise self._failed(f"body is longer than the {skip + size} bytes asked for")
        if out.tell() != size:
            raise self._failed(f"body ended after {out.tell()} of {size} bytes")
        return out.getvalue()

    def _remember(self, place: _Place, answer: Any) -> None:
        """Keep the CDN's place. Raises IntegrityError where it now has another file than in its first answer."""
        if place.ours:
            return
        etag = _etag(answer.headers.get("ETag"))
        with self._lock:
            known = self._known
            if known is None or known.url != place.url:
                self._known = _Place(place.url, ours=False, etag=etag)
            elif known.etag != etag:
                raise changed(self.file, f"its ETag was {known.etag!r}, now {etag!r}")

    def _forget(self, place: _Place) -> None:
        with self._lock:
            if self._known is place:
                self._known = None

    def _refused(self, place: _Place, answer: Any) -> RemoteError:
        status = answer.status_code
        where: dict[str, Any] = {"retry_after": _retry_after(answer.headers)}
        if place.ours:
            from huggingface_hub import hf_raise_for_status
            from huggingface_hub.errors import HfHubHTTPError

            try:
                hf_raise_for_status(answer)
            except HfHubHTTPError as exc:
                error = refused(exc, source=self.file.at, revision=self.file.commit)
                error.where |= where | {"file": self.file.path}
                return error
        host = urlsplit(place.url).hostname
        hint = self._by_client() if status == 400 else "try again"
        if status in (401, 403):  # a new signature may do; `retry` knows what this means
            where["code"] = "ExpiredToken"
        return self._failed(f"{host} answered {status}", hint=hint, **where, status=status)

    def _by_client(self) -> str:
        return f"fetch it with `hf download {self.file.repo} {self.file.path}` first; the client's cache is then read"

    def _failed(
        self, what: str, *, hint: str = "check the network and HTTPS_PROXY, then run again", **where: Any
    ) -> RemoteError:
        return RemoteError(f"{self.file.at}: {what}", hint=hint, where={"file": self.file.path, **where})


def library() -> Any:
    """The HTTP library that the hub's client uses: httpx or its successor, by version of the client."""
    from huggingface_hub.errors import HfHubHTTPError

    return importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])


def refused(exc: Exception, *, source: str, revision: str | None) -> RemoteError:
    """What the hub, or the way to it, said, as an error of ours. source, revision: what was asked for."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    answer: Any = getattr(exc, "response", None)
    status = getattr(answer, "status_code", 0)
    where: dict[str, Any] = {"status": status, "retry_after": _retry_after(answer.headers)} if status else {}
    if isinstance(exc, GatedRepoError):
        hint = "accept its terms on the model's page, then set model.token"
        return RemoteError(f"{source}: access is gated", hint=hint, where=where)
    if isinstance(exc, RevisionNotFoundError):
        return RemoteError(f"{source}: no revision {revision!r}", hint="check the branch, tag or commit", where=where)
    if isinstance(exc, RepositoryNotFoundError) or status in (401, 403):
        hint = "check the name; for a private model set model.token"
        return RemoteError(f"{source}: not found, or private", hint=hint, where=where)
    if status:
        return RemoteError(f"{source}: the hub answered {status}: {said(exc)}", hint="try again", where=where)
    return RemoteError(f"{source}: the hub cannot be reached: {said(exc)}", hint="check the network and HTTPS_PROXY")


def said(exc: Exception) -> str:
    """The first line of what a client's error says, without the query of any URL in it: that may be a signature."""
    line = "".join(str(exc).strip().splitlines()[:1]) or type(exc).__name__
    return re.sub(r"\?[^\s'\"]*", "", line)


def _retry_after(headers: Any) -> float:
    """Seconds that the server asks for: Retry-After, or the hub's RateLimit where nothing remains. 0 where it says none."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # exported lazily

    limit, after = parse_ratelimit_headers(headers), headers.get("Retry-After", "").strip()
    window = limit.reset_in_seconds if limit and not limit.remaining else 0
    return float(max(int(after) if after.isdigit() else 0, window))


def _etag(value: str | None) -> str:
    return (value or "").removeprefix("W/").strip('"')


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)
