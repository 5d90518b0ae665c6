"""A real HTTP server in a thread that serves a folder of objects, as S3 (by path) and as plain HTTP, and fails on order.

    with ObjectServer(folder, plan=random_faults(0.05, seed=1)) as server:
        open_source(f"s3://bucket/prefix", endpoint_url=server.endpoint_url, ...)   # folder/bucket/prefix/<key>

It reads whole objects and lists (version 2, one page), and does not look at signatures. The plan decides per request from
the request's number and the object's key, so a seed gives the same faults every run, whatever the threads do to the order.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.bounds import BOUND_S

Plan = Callable[[str, int], str]
"""(key, how many times this key was asked for before) -> a name of FAULTS, or "" to serve the object."""

FAULTS = (
    "refuse",  # 403 AccessDenied
    "error",  # 500
    "busy",  # 503 SlowDown with Retry-After
    "missing",  # 404, though it is there
    "hangup",  # connection closed before the status line
    "cut",  # closed in the middle of the body
    "short",  # half of the body under a Content-Length of half: only the reader knows
    "long",  # one byte too many, announced
    "flip",  # one bit of the body flipped
    "swap",  # the right length of other bytes
    "stall",  # half of the body, then silence
    "trickle",  # a byte now and then: alive for every time-out on silence
    "silent",  # nothing at all
)
TRANSIENT = ("error", "busy", "hangup", "cut", "short", "flip", "swap", "stall", "trickle", "silent")


class ObjectServer:
    """folder: folder/<bucket>/<key>.  served, failed: requests by key and by fault.  body_bytes: sent as bodies.

    stall_s: how long a silent or trickling connection lasts.  delay_s: before every answer.
    """

    def __init__(
        self, folder: Path, *, plan: Plan | None = None, stall_s: float = BOUND_S, retry_after_s: int = 0, delay_s: float = 0.0
    ) -> None:
        self.folder = folder
        self.plan: Plan = plan or (lambda key, asked: "")
        self.stall_s = stall_s
        self.retry_after_s = retry_after_s
        self.delay_s = delay_s
        self._served: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.body_bytes = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._asked: Counter[str] = Counter()
        self._httpd = _Server(self)
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def served(self) -> Counter[str]:
        """A copy, since the server may be at work."""
        with self.lock:
            return self._served.copy()

    def forget(self) -> None:
        """Count `served` from nothing."""
        with self.lock:
            self._served.clear()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._httpd.server_port}"

    def __enter__(self) -> ObjectServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._httpd.shutdown()
        self._httpd.server_close()
        self._httpd.hang_up()
        self._thread.join()

    def next_fault(self, key: str) -> str:
        with self.lock:
            asked = self._asked[key]
            self._asked[key] += 1
            fault = self.plan(key, asked)
            if fault:
                self.failed[fault] += 1
            else:
                self._served[key] += 1
            return fault


def random_faults(share: float, *, seed: int, faults: tuple[str, ...] = TRANSIENT, only: str = "chunks/") -> Plan:
    """Each request for a key that contains `only` fails with probability `share`, independent of the order of requests."""

    def plan(key: str, asked: int) -> str:
        draw = int.from_bytes(hashlib.sha256(f"{seed}:{key}:{asked}".encode()).digest()[:8], "big") / 2**64
        return faults[int(draw / share * len(faults))] if only in key and draw < share else ""

    return plan


def first_times(fault: str, times: int = 1, only: str = "chunks/") -> Plan:
    """Each matching key fails the first `times` times it is asked for."""
    return lambda key, asked: fault if only in key and asked < times else ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: ObjectServer) -> None:
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


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = BOUND_S
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.owner = self.server.owner

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        path = unquote(url.path).strip("/")
        if query.get("list-type") == ["2"]:
            self._list(path, query.get("prefix", [""])[0])
            return
        fault = self.owner.next_fault(path)
        file = self.owner.folder / path
        self._wait(self.owner.delay_s)
        if fault == "missing" or not file.is_file():
            self._answer(404, _xml("NoSuchKey"))
        elif fault:
            getattr(self, f"_{fault}")(file.read_bytes())
        else:
            self._answer(200, file.read_bytes())

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, announced: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if status == 200 else "application/xml")
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.send_header("Last-Modified", self.date_time_string(0))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        with self.owner.lock:
            self.owner.body_bytes += len(body)

    def _list(self, bucket: str, prefix: str) -> None:
        root = self.owner.folder / bucket
        keys = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<Size>{(root / key).stat().st_size}</Size></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode())

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _wait(self, seconds: float) -> None:
        self.owner.closing.wait(seconds)

    # One method per fault that needs the object's bytes.

    def _refuse(self, body: bytes) -> None:
        self._answer(403, _xml("AccessDenied"))

    def _error(self, body: bytes) -> None:
        self._answer(500, _xml("InternalError"))

    def _busy(self, body: bytes) -> None:
        self._answer(503, _xml("SlowDown"), {"Retry-After": str(self.owner.retry_after_s)})

    def _hangup(self, body: bytes) -> None:
        self._hang_up()

    def _cut(self, body: bytes) -> None:
        self._answer(200, body[: len(body) // 2], announced=len(body))
        self._hang_up()

    def _short(self, body: bytes) -> None:
        self._answer(200, body[: len(body) // 2])

    def _long(self, body: bytes) -> None:
        self._answer(200, body + b"\0")

    def _flip(self, body: bytes) -> None:
        wrong = bytearray(body)
        wrong[len(body) // 3] ^= 0x10
        self._answer(200, bytes(wrong))

    def _swap(self, body: bytes) -> None:
        self._answer(200, bytes(len(body)))

    def _stall(self, body: bytes) -> None:
        self._answer(200, body[: len(body) // 2], announced=len(body))
        self._wait(self.owner.stall_s)
        self._hang_up()

    def _trickle(self, body: bytes) -> None:
        self._answer(200, body[:1], announced=len(body))
        end = time.monotonic() + self.owner.stall_s
        for at in range(1, len(body)):
            if time.monotonic() > end or self.owner.closing.is_set():
                break
            self.wfile.write(body[at : at + 1])
            self.wfile.flush()
            self._wait(0.02)
        self._hang_up()

    def _silent(self, body: bytes) -> None:
        self._wait(self.owner.stall_s)
        self._hang_up()


def _xml(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
