"""A reverse proxy in front of a real S3 server that fails on order.

    with FaultProxy(s3.endpoint_url, plan=random_faults(0.05, seed=1)) as proxy:
        S3Store(s3.url, endpoint_url=proxy.endpoint_url)

It passes requests on as they came, Host included, so that the client's signature holds. The plan decides per request from
its method, key and how often both came before, so a seed gives the same faults every run, whatever threads do to the order.

What only AWS does and rclone does not, it adds where asked: `digests` keeps the checksum headers of each PUT, refuses a body
that does not match them, and returns them with GET and HEAD (User Guide, "Checking object integrity").
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from builder.transfer.checksum import crc64nvme_hex
from tests.bounds import BOUND_S

HOP = frozenset({"connection", "keep-alive", "expect", "transfer-encoding", "te", "upgrade", "proxy-connection"})
SUMS = "x-amz-checksum-"

FAULTS = {
    "error": "500 InternalError, not passed on",
    "unavailable": "503 ServiceUnavailable, not passed on",
    "busy": "503 SlowDown, not passed on",
    "refuse": "403 AccessDenied, not passed on",
    "expired": "400 ExpiredToken, not passed on",
    "skewed": "403 RequestTimeTooSkewed, not passed on",
    "quota": "403 QuotaExceeded, not passed on (Ceph, MinIO)",
    "full": "507 InsufficientStorage, not passed on",
    "unknown": "501 NotImplemented if the request has a condition; else served",
    "hangup": "closed before an answer, not passed on",
    "hangup-after": "passed on and done; closed before an answer",
    "error-after": "passed on and done; 500 all the same",
    "cut-request": "half of the request's body is passed on, then both sides are closed",
    "stall-request": "half of the request's body is read, then nothing for stall_s",
    "flip-request": "one bit of the request's body flipped on its way in",
    "silent": "the request is read; nothing for stall_s",
    "cut": "half of the answer's body, then closed",
    "stall": "half of the answer's body, then nothing for stall_s",
    "short": "half of the answer's body, under a Content-Length of half",
    "long": "one byte more than the object has, announced",
    "surplus": "one byte more than Content-Length announces, on a connection that goes on",
    "flip": "one bit of the answer's body flipped",
    "swap": "other bytes of the same length",
    "strip": "the answer without checksum headers",
    "sum": "the whole object's checksum with whatever part of it was asked for",
}
THROTTLES = ("error", "unavailable", "busy")


@dataclass(frozen=True)
class Asked:
    """A request. key: bucket/key.  nth: how often this method and key came before.  total: requests before this one."""

    method: str  # LIST for a listing
    key: str
    nth: int
    total: int
    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, list[str]] = field(repr=False)

    @property
    def token(self) -> str:
        """The session token, from the header or the query (a presigned request)."""
        lower = {k.lower(): v for k, v in self.headers.items()}
        return lower.get("x-amz-security-token", "") or self.query.get("X-Amz-Security-Token", [""])[0]


Plan = Callable[[Asked], str]
"""A name of FAULTS, or "" to serve the request."""


def random_faults(share: float, *, seed: int, faults: tuple[str, ...] = THROTTLES, methods: str = "", only: str = "") -> Plan:
    """Each request with a method of `methods` (all, if empty) and `only` in its key fails with probability `share`."""

    def plan(asked: Asked) -> str:
        seen = f"{seed}:{asked.method}:{asked.key.partition('/')[2]}:{asked.nth}"  # a bucket's name differs between runs
        draw = int.from_bytes(hashlib.sha256(seen.encode()).digest()[:8], "big") / 2**64
        return faults[int(draw / share * len(faults))] if _matches(asked, methods, only) and draw < share else ""

    return plan


def first_times(fault: str, times: int = 1, *, methods: str = "", only: str = "") -> Plan:
    """Each matching key fails the first `times` times it is asked for."""
    return lambda asked: fault if _matches(asked, methods, only) and asked.nth < times else ""


def _matches(asked: Asked, methods: str, only: str) -> bool:
    return (not methods or asked.method in methods.split()) and only in asked.key


class FaultProxy:
    """asked: every request, in order of arrival.  failed: faults by name.

    digests: keep, check and return checksums as AWS does.  clock_off: added to every time the server tells.
    stall_s: how long a stall lasts.  delay_s: before every request.  done: called when the server has done what a
    hangup-after asked for, while its client still waits.
    """

    def __init__(
        self,
        endpoint_url: str,
        *,
        plan: Plan | None = None,
        digests: bool = False,
        clock_off: timedelta = timedelta(0),
        stall_s: float = BOUND_S,
        delay_s: float = 0.0,
    ) -> None:
        self.upstream = urlsplit(endpoint_url).netloc
        self.plan: Plan = plan or (lambda asked: "")
        self.digests, self.clock_off, self.stall_s, self.delay_s = digests, clock_off, stall_s, delay_s
        self.asked: list[Asked] = []
        self.failed: Counter[str] = Counter()
        self.kept: dict[str, dict[str, str]] = {}  # checksum headers by key
        self.done: Callable[[], None] = lambda: None
        self.closing = threading.Event()
        self._seen: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._httpd = _Server(self)
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._httpd.server_port}"

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.closing.set()
        self._httpd.shutdown()
        self._httpd.server_close()
        self._httpd.hang_up()
        self._thread.join()

    def count(self, method: str, only: str = "") -> int:
        """Requests so far of that method with `only` in the key."""
        with self._lock:
            return sum(a.method == method and only in a.key for a in self.asked)

    def note(self, method: str, key: str, headers: Mapping[str, str], query: Mapping[str, list[str]]) -> str:
        """Record the request; the fault that it meets."""
        with self._lock:
            asked = Asked(method, key, self._seen[method, key], len(self.asked), headers, query)
            self._seen[method, key] += 1
            self.asked.append(asked)
            fault = self.plan(asked)
            if fault and fault not in FAULTS:
                raise ValueError(f"{fault}: not a fault of this proxy")
            self.failed.update([fault] if fault else [])
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: FaultProxy) -> None:
        self.owner = owner
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Close what clients keep open, as a server that ends does."""
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not news."""


@dataclass
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((v for k, v in self.headers if k.lower() == name.lower()), "")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = BOUND_S
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.owner = self.server.owner

    def log_message(self, format: str, *args: object) -> None: ...

    def handle_expect_100(self) -> bool:
        self.send_response_only(100)
        self.end_headers()
        return True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        self.key = unquote(url.path).strip("/")
        method = "LIST" if "list-type" in query else self.command
        fault = self.owner.note(method, self.key, dict(self.headers.items()), query)
        self.owner.closing.wait(self.owner.delay_s)
        if fault and (special := getattr(self, "_" + fault.replace("-", "_"), None)):
            special()
        else:
            self._send(self._changed(fault, self._ask(self._body())))

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET

    # The way in.

    def _length(self) -> int:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            raise NotImplementedError("a request with a chunked body")
        return int(self.headers.get("Content-Length", 0))

    def _body(self) -> bytes:
        return self.rfile.read(self._length())

    def _ask(self, body: bytes) -> _Answer:
        """What the server says."""
        if self.owner.digests and self.command == "PUT" and (wrong := self._wrong_sums(body)):
            return _refusal(400, wrong)
        connection = self._forward(body)
        if len(body) < int(self.headers.get("Content-Length", 0)):  # the client died, or went away: so does its request
            connection.close()
            raise ConnectionAbortedError("the request ended early")
        try:
            found = connection.getresponse()
            answer = _Answer(found.status, found.getheaders(), found.read())
        finally:
            connection.close()
        if self.owner.digests:
            self._keep_sums(answer)
        return self._shift_clock(answer) if self.owner.clock_off else answer

    def _forward(self, body: bytes) -> http.client.HTTPConnection:
        """The request, sent on."""
        connection = http.client.HTTPConnection(self.owner.upstream, timeout=BOUND_S)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP:
                connection.putheader(name, value)
        connection.endheaders()
        connection.send(body)
        return connection

    # What AWS adds.

    def _sums(self) -> dict[str, str]:
        return {k.lower(): v for k, v in self.headers.items() if k.lower().startswith(SUMS) and k.lower() != SUMS + "mode"}

    def _wrong_sums(self, body: bytes) -> str:
        found = {
            SUMS + "sha256": hashlib.sha256(body).digest(),
            SUMS + "crc64nvme": bytes.fromhex(crc64nvme_hex(body)),
        }
        wrong = [name for name, value in self._sums().items() if value != base64.b64encode(found.get(name, b"")).decode()]
        return "BadDigest" if wrong else ""

    def _keep_sums(self, answer: _Answer) -> None:
        if self.command == "PUT" and answer.status == 200:
            self.owner.kept[self.key] = self._sums()
        wanted = self.headers.get(SUMS + "mode", "").upper() == "ENABLED" and not self.headers.get("Range")
        if self.command in ("GET", "HEAD") and answer.status == 200 and wanted:
            answer.headers += self._kept()

    def _kept(self) -> list[tuple[str, str]]:
        kept = list(self.owner.kept.get(self.key, {}).items())
        return [*kept, (SUMS + "type", "FULL_OBJECT")] if kept else []

    def _shift_clock(self, answer: _Answer) -> _Answer:
        def shift(name: str, value: str) -> str:
            if name.lower() not in ("date", "last-modified"):
                return value
            return format_datetime(parsedate_to_datetime(value) + self.owner.clock_off, usegmt=True)

        def later(found: re.Match[bytes]) -> bytes:
            at = datetime.fromisoformat(found[1].decode()) + self.owner.clock_off
            return f"<LastModified>{at.strftime('%Y-%m-%dT%H:%M:%S.000Z')}</LastModified>".encode()

        body = re.sub(rb"<LastModified>([^<]*)</LastModified>", later, answer.body) if self._lists() else answer.body
        return _Answer(answer.status, [(k, shift(k, v)) for k, v in answer.headers], body)

    def _lists(self) -> bool:
        return "list-type" in self.path

    # The way out.

    def _send(self, answer: _Answer, announced: int | None = None) -> None:
        """announced: Content-Length, where it shall not be that of the body."""
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in HOP and name.lower() != "content-length":
                self.send_header(name, value)
        head = self.command == "HEAD"
        length = answer.header("Content-Length") or "0" if head else str(len(answer.body))
        self.send_header("Content-Length", length if announced is None else str(announced))
        self.end_headers()
        self.wfile.write(b"" if head else answer.body)
        self.wfile.flush()

    def _changed(self, fault: str, answer: _Answer) -> _Answer:
        """The server's answer with what the fault does to it. Errors are left as they are: there is nothing to damage."""
        if answer.status >= 300 or fault in ("", "long", "surplus"):
            return answer
        body = answer.body
        if fault == "strip":
            return _Answer(answer.status, [h for h in answer.headers if not h[0].lower().startswith(SUMS)], body)
        if fault == "sum":
            return _Answer(answer.status, [*answer.headers, *self._kept()], body)
        if fault == "short":
            return _Answer(answer.status, answer.headers, body[: len(body) // 2])
        if fault == "flip":
            return _Answer(answer.status, answer.headers, flipped(body))
        if fault == "swap":
            return _Answer(answer.status, answer.headers, bytes(len(body)))
        raise ValueError(f"{fault}: does nothing to an answer")

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _stop(self) -> None:
        self.owner.closing.wait(self.owner.stall_s)
        self._hang_up()

    def _say(self, status: int, code: str) -> None:
        self._body()
        self._send(_refusal(status, code))

    # One method per fault that is more than a change of the answer.

    def _error(self) -> None:
        self._say(500, "InternalError")

    def _unavailable(self) -> None:
        self._say(503, "ServiceUnavailable")

    def _busy(self) -> None:
        self._say(503, "SlowDown")

    def _refuse(self) -> None:
        self._say(403, "AccessDenied")

    def _expired(self) -> None:
        self._say(400, "ExpiredToken")

    def _skewed(self) -> None:
        self._say(403, "RequestTimeTooSkewed")

    def _quota(self) -> None:
        self._say(403, "QuotaExceeded")

    def _full(self) -> None:
        self._say(507, "InsufficientStorage")

    def _unknown(self) -> None:
        if any(self.headers.get(name) for name in ("If-None-Match", "If-Match")):
            self._say(501, "NotImplemented")
        else:
            self._send(self._ask(self._body()))

    def _hangup(self) -> None:
        self._body()
        self._hang_up()

    def _hangup_after(self) -> None:
        self._ask(self._body())
        self.owner.done()
        self._hang_up()

    def _error_after(self) -> None:
        self._ask(self._body())
        self._send(_refusal(500, "InternalError"))

    def _cut_request(self) -> None:
        self._forward(self.rfile.read(self._length() // 2)).close()
        self._hang_up()

    def _stall_request(self) -> None:
        self.rfile.read(self._length() // 2)
        self._stop()

    def _flip_request(self) -> None:
        self._send(self._ask(flipped(self._body())))

    def _silent(self) -> None:
        self._body()
        self._stop()

    def _cut(self) -> None:
        answer = self._ask(self._body())
        self._send(_Answer(answer.status, answer.headers, answer.body[: len(answer.body) // 2]), len(answer.body))
        self._hang_up()

    def _stall(self) -> None:
        answer = self._ask(self._body())
        self._send(_Answer(answer.status, answer.headers, answer.body[: len(answer.body) // 2]), len(answer.body))
        self._stop()

    def _long(self) -> None:
        answer = self._ask(self._body())
        self._send(_Answer(answer.status, answer.headers, answer.body + b"\0"))

    def _surplus(self) -> None:
        answer = self._ask(self._body())
        self._send(_Answer(answer.status, answer.headers, answer.body + b"\0"), len(answer.body))


def flipped(body: bytes) -> bytes:
    """One bit in the first third changed."""
    wrong = bytearray(body)
    if wrong:
        wrong[len(body) // 3] ^= 0x10
    return bytes(wrong)


def _refusal(status: int, code: str) -> _Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()
    return _Answer(
        status, [("Content-Type", "application/xml"), ("Date", format_datetime(datetime.now(UTC), usegmt=True))], body
    )
