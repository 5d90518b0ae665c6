"""One GET through a small window, over HTTP/1.1 connections that are kept: the standard library's client, and few copies.

The body goes from the socket straight into the caller's window, which is reused for every piece and every object: what is
checked and written next is still in the processor's cache, and no page is faulted in twice.
Measured here on 2 cores, 8 connections, 64 objects of 16 MiB, CPU seconds per GB with CRC64NVME (client only):

                              plain http    TLS 1.3
    obstore, stream              1.1          -
    obstore, bytes               0.65         2.3     (rustls)
    this                         0.37         1.1     (OpenSSL)

so obstore finds the credentials, signs and lists, and the bytes come through here. Nothing of an answer is trusted: neither
its length, nor its checksum headers, which some servers compute over the whole object for a part of it (rclone).

Bounded in time by `Limits`: connecting, silence, and a floor on the rate, because a socket that trickles keeps every other
time limit happy for days. Proxies come from the environment, as for urllib.
"""

from __future__ import annotations

import base64
import http.client
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

PIECE_BYTES = 512 << 10  # handed on at once: still in the second-level cache when it is hashed and written
ERROR_BYTES = 64 << 10  # of an error's body
REDIRECTS = 5
Seen = Callable[[memoryview], object]


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


@dataclass(frozen=True)
class Answer:
    """status: HTTP's.  size: bytes of the body that came, for 200.  body: of any other status, cut at ERROR_BYTES.
    headers: lower-case names.
    """

    status: int
    size: int = 0
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Broken(Exception):
    """The connection failed, or the body is not what its header announced. The message says what happened, in few words."""


class TooLarge(Exception):
    """The body is larger than allowed. size: bytes announced, -1 if none were."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


class Floor:
    """Raises Broken once fewer bytes came in a window of time than `limits` allow."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._since, self._had = clock(), 0

    def require(self, total: int) -> None:
        """total: bytes so far."""
        now = self._clock()
        spent, came = now - self._since, total - self._had
        if spent < self._limits.window_s:
            return
        if came / spent < self._limits.floor_bytes_s:
            raise Broken(f"stalled: {came} bytes in {spent:.0f} s, {total} received")
        self._since, self._had = now, total


class Client:
    """Keeps connections between requests. Thread-safe: a connection serves one request at a time."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        weakref.finalize(self, _close, self._idle)
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._proxies = getproxies()

    def get(self, url: str, window: memoryview, *, limit: int, seen: Seen) -> Answer:
        """The body of `url`, in pieces that are views into `window`, from its start on and over again when it is full.

        seen(piece): every piece of the body, in order; its bytes are good until it returns. Nothing beyond `limit` is seen.
        Raises TooLarge if the body is above `limit`; Broken; what `seen` raises.
        """
        for _ in range(REDIRECTS):
            answer = self._get(url, window, limit, seen)
            if answer.status not in (301, 302, 303, 307, 308) or "location" not in answer.headers:
                break
            url = urljoin(url, answer.headers["location"])
        return answer

    def _get(self, url: str, window: memoryview, limit: int, seen: Seen) -> Answer:
        parts = urlsplit(url)
        at = (parts.scheme, parts.netloc.rpartition("@")[2])
        headers = {"Host": at[1]}
        if "@" in parts.netloc:
            user = unquote(parts.netloc.rpartition("@")[0])
            headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        connection, response = self._ask(at, url, headers)
        keep = False
        try:
            answer = self._answer(response, window, limit, seen)
            keep = not response.will_close and response.length in (0, None)
            return answer
        finally:
            response.close()
            if keep:
                with self._lock:
                    self._idle.setdefault(at, []).append(connection)
            else:
                connection.close()

    def _ask(
        self, at: tuple[str, str], url: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A connection with the head of its answer. A kept one that the server has closed meanwhile is replaced once."""
        target = url if self._through_proxy(at) and at[0] == "http" else url[url.index("/", len(at[0]) + 3) :]
        while True:
            with self._lock:
                idle = self._idle.get(at)
                connection = idle.pop() if idle else None
            fresh = connection is None
            try:
                if connection is None:
                    connection = self._connect(at)
                connection.request("GET", target.partition("#")[0], headers=headers)
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as exc:
                if connection is not None:
                    connection.close()
                if fresh or isinstance(exc, TimeoutError):
                    raise Broken(_said(exc, "connection closed before an answer")) from exc

    def _connect(self, at: tuple[str, str]) -> http.client.HTTPConnection:
        scheme, netloc = at
        proxy = urlsplit(self._proxies[scheme]) if self._through_proxy(at) else None
        where = urlsplit(f"//{netloc}") if proxy is None else proxy
        host, port = where.hostname or "", where.port
        if scheme == "https":
            if self._tls is None:
                self._tls = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=self.limits.connect_s, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self.limits.connect_s)
        if proxy is not None and scheme == "https":
            connection.set_tunnel(urlsplit(f"//{netloc}").hostname or "", urlsplit(f"//{netloc}").port, _proxy_headers(proxy))
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as exc:
            connection.close()
            raise Broken("cannot connect: " + (getattr(exc, "strerror", None) or str(exc))) from exc
        connection.sock.settimeout(self.limits.silence_s)
        return connection

    def _through_proxy(self, at: tuple[str, str]) -> bool:
        return at[0] in self._proxies and not proxy_bypass(at[1])

    def _answer(self, response: http.client.HTTPResponse, window: memoryview, limit: int, seen: Seen) -> Answer:
        headers = {name.lower(): value for name, value in response.getheaders()}
        if response.status != 200:
            return Answer(response.status, body=_error_body(response), headers=headers)
        size = response.length
        if size is not None and size > limit:
            raise TooLarge(size)
        return Answer(200, self._body(response, window, size, limit, seen), headers=headers)

    def _body(self, response: http.client.HTTPResponse, window: memoryview, size: int | None, limit: int, seen: Seen) -> int:
        """The body through the window; its bytes. size: as announced, or None (chunked, or until the server closes)."""
        read = _reader(response, size)
        total = first = last = 0  # of the body; of the piece in the window that was not handed on yet
        floor = Floor(self.limits, self._clock)
        end = limit if size is None else size
        while total < end or size is None:
            try:
                got = read(window[last : last + min(PIECE_BYTES, end - total)]) if total < end else _more(response)
            except (OSError, http.client.HTTPException) as exc:
                raise Broken(_said(exc, "connection lost in the middle of the body")) from exc
            if not got:
                break
            total, last = total + got, last + got
            if last - first >= PIECE_BYTES or last == len(window):
                seen(window[first:last])
                first = last = last % len(window)
            floor.require(total)
        if size is not None and total != size:
            raise Broken("connection lost in the middle of the body")
        if last > first:
            seen(window[first:last])
        return total


def _error_body(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(ERROR_BYTES)
    except (OSError, http.client.HTTPException) as exc:
        raise Broken(_said(exc, "connection lost in the middle of the body")) from exc


def _close(idle: Mapping[tuple[str, str], list[http.client.HTTPConnection]]) -> None:
    for connections in idle.values():
        for connection in connections:
            connection.close()


def _reader(response: http.client.HTTPResponse, size: int | None) -> Callable[[memoryview], int]:
    """One read from the connection into a piece of the buffer; 0 at the end.

    With a length, the response's own buffered socket is asked: its readinto1 hands large pieces to recv_into as they are.
    """
    raw = response.fp
    if size is None or raw is None:

        def generic(piece: memoryview) -> int:
            body = response.read1(len(piece))
            piece[: len(body)] = body
            return len(body)

        return generic

    def direct(piece: memoryview) -> int:
        got = raw.readinto1(piece)
        response.length = (response.length or 0) - got
        return got

    return direct


def _more(response: http.client.HTTPResponse) -> int:
    """0 if a body of unknown length ends where the buffer does. Raises TooLarge."""
    if response.read1(1):
        raise TooLarge(-1)
    return 0


def _proxy_headers(proxy: object) -> dict[str, str]:
    user, password = getattr(proxy, "username", None), getattr(proxy, "password", None)
    if not user:
        return {}
    pair = f"{unquote(user)}:{unquote(password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _said(exc: Exception, otherwise: str) -> str:
    return "timed out" if isinstance(exc, TimeoutError) else otherwise
