"""An HTTP server of one model, by the Open Inference Protocol (KServe v2), with tensors in JSON and in bytes. Needs numpy.

    GET  /v2   /v2/health/live   /v2/health/ready   /v2/models/NAME[/versions/1][/ready]
    POST /v2/models/NAME[/versions/1]/infer
    Errors are {"error": "..."}: 400 for a request that is wrong, 404 for what is not there, 411, 413, 503 when too many wait.

Bounds: size of a request, inferences at a time, requests that wait, connections. More connections wait in the kernel's queue.
Source: KServe, Open Inference Protocol V2; Triton, "Binary Tensor Data Extension" (Inference-Header-Content-Length).
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from builder import __version__
from builder.runtime import v2_tensors
from builder.runtime.v2 import HEADER_LENGTH, Spec
from builder.runtime.v2_tensors import Refused

__all__ = ["Limits", "Model", "Refused", "Server", "Spec"]
VERSION = "1"
IDLE_S = 120.0  # a connection that says nothing for so long is closed
_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<what>/ready|/infer)?")


class Model(Protocol):
    """What is served. infer: arrays of `outputs`, in that order; raises Refused for what the model rejects."""

    name: str
    platform: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]

    def infer(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]: ...


@dataclass(frozen=True)
class Limits:
    parallel: int
    queue: int
    connections: int
    request_bytes: int


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], model: Model, limits: Limits) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.model, self.limits = model, limits
        self._connections = threading.BoundedSemaphore(limits.connections)
        self._turn = threading.BoundedSemaphore(limits.parallel)
        self._queued = self._answering = 0
        self._changed, self._stopping = threading.Condition(), threading.Event()
        super().__init__(address, Handler)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Around an inference: waits for a turn. Raises Refused if too many wait."""
        with self._changed:
            if self._queued >= self.limits.parallel + self.limits.queue:
                raise Refused(503, f"{self._queued} requests run or wait already")
            self._queued += 1
        try:
            with self._turn:
                yield
        finally:
            with self._changed:
                self._queued -= 1

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Around a request that has been read, until its answer is written: `drained` waits for it."""
        with self._changed:
            self._answering += 1
        try:
            yield
        finally:
            with self._changed:
                self._answering -= 1
                self._changed.notify_all()

    def drained(self) -> None:
        """Once every request that was read has its answer."""
        with self._changed:
            self._changed.wait_for(lambda: not self._answering)

    def shutdown(self) -> None:
        self._stopping.set()
        super().shutdown()

    def process_request(self, request: Any, client_address: Any) -> None:
        while not self._connections.acquire(timeout=0.05):
            if self._stopping.is_set():
                self.shutdown_request(request)
                return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._connections.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"builder/{__version__}"
    disable_nagle_algorithm = True
    timeout = IDLE_S
    server: Server

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        try:
            body = self._body()
        except Refused as exc:
            self._error(exc.status, str(exc))
            return
        with self.server.answering():
            self._answered(lambda: self._post(body))

    def _answered(self, work: Callable[[], tuple[dict[str, Any], list[bytes]]]) -> None:
        try:
            header, blobs = work()
            body = json.dumps(header, allow_nan=False).encode()
        except Refused as exc:
            self._error(exc.status, str(exc))
        except ValueError as exc:  # of allow_nan
            self._error(500, f"{exc}; ask for binary_data_output")
        except MemoryError:
            self._error(500, "not enough memory for this request")
        else:
            self._send(200, body, blobs)

    def _get(self) -> tuple[dict[str, Any], list[bytes]]:
        path, model = urlsplit(self.path).path.rstrip("/"), self.server.model
        if path == "/v2":
            return {"name": "builder-onnxruntime", "version": __version__, "extensions": ["binary_tensor_data"]}, []
        if path in ("/v2/health/live", "/v2/health/ready"):
            return {path.rpartition("/")[2]: True}, []
        what = self._model(path)
        if what == "/infer":
            raise Refused(405, "POST it")
        if what == "/ready":
            return {"name": model.name, "ready": True}, []
        inputs, outputs = ([_described(spec) for spec in specs] for specs in (model.inputs, model.outputs))
        return {"name": model.name, "versions": [VERSION], "platform": model.platform, "inputs": inputs, "outputs": outputs}, []

    def _post(self, body: bytes) -> tuple[dict[str, Any], list[bytes]]:
        if self._model(urlsplit(self.path).path) != "/infer":
            raise Refused(405, "GET it")
        model = self.server.model
        asked = v2_tensors.request(body, self.headers.get(HEADER_LENGTH), model.inputs, model.outputs)
        with self.server.turn():
            arrays = model.infer(asked.inputs, [output.name for output in asked.outputs])
        header: dict[str, Any] = {"model_name": model.name, "model_version": VERSION}
        if asked.id:
            header["id"] = asked.id
        header["outputs"], blobs = v2_tensors.response(arrays, asked.outputs, model.outputs)
        return header, blobs

    def _model(self, path: str) -> str:
        """ "", "/ready" or "/infer". Raises Refused if the path names no such thing of this model."""
        match, name = _MODEL.fullmatch(path), self.server.model.name
        if not match:
            raise Refused(404, f"{path}: not a path of the Open Inference Protocol")
        if unquote(match["name"]) != name or match["version"] not in (None, VERSION):
            raise Refused(
                404, f"unknown model {unquote(match['name'])!r}, version {match['version'] or VERSION}; this is {name}"
            )
        return match["what"] or ""

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self.close_connection = True  # where this request ends is not known
            raise Refused(411, "Content-Length is missing")
        if int(length) > self.server.limits.request_bytes:
            self.close_connection = True
            raise Refused(413, f"{length} bytes; this server takes {self.server.limits.request_bytes}")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            raise Refused(400, f"the request broke off after {len(body)} of {length} bytes")
        return body

    def _send(self, status: int, body: bytes, blobs: Sequence[bytes] = ()) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if blobs else "application/json")
        self.send_header("Content-Length", str(len(body) + sum(map(len, blobs))))
        if blobs:
            self.send_header(HEADER_LENGTH, str(len(body)))
        if status == 503:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"".join([body, *blobs]))

    def _error(self, status: int, text: str) -> None:
        self._send(status, json.dumps({"error": text}).encode())


def _described(spec: Spec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
