"""The Open Inference Protocol over real HTTP: what is answered, refused and bounded. The model doubles, or waits."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from builder import __version__
from builder.runtime import v2
from builder.runtime.v2_server import Limits, Refused, Server, Spec
from builder.runtime.warmup import level_of
from tests.bounds import BOUND_S

ROOT = Path(__file__).parents[3]
HEADER = "Inference-Header-Content-Length"
LIMIT = 4096


class Model:
    """n (INT64, one row of two) doubled; t (text) turned round; z: n / 0 as FP32. `hold` makes an inference wait."""

    name, platform = "m", "test"
    inputs = (Spec("n", "INT64", (-1, 2)), Spec("t", "BYTES", (1,)))
    outputs = (Spec("n2", "INT64", (-1, 2)), Spec("t2", "BYTES", (1,)), Spec("z", "FP32", (1,)))

    def __init__(self) -> None:
        self.hold: Callable[[], Any] = lambda: None
        self.running = threading.Semaphore(0)

    def infer(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        import numpy as np

        self.running.release()
        self.hold()
        if (inputs["n"] < 0).any():
            raise Refused(400, "m: negative")
        made = {"n2": inputs["n"] * 2, "t2": np.array([inputs["t"][0][::-1]], dtype=object)}
        made["z"] = np.array([np.inf], dtype="f4")
        return [made[name] for name in outputs]


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Model(), Limits(parallel=1, queue=1, connections=8, request_bytes=LIMIT))
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def ask(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=BOUND_S)
    with closing(connection):
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, sent, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def request(**changes: Any) -> dict[str, Any]:
    n = {"name": "n", "datatype": "INT64", "shape": [1, 2], "data": [3, 4]}
    t = {"name": "t", "datatype": "BYTES", "shape": [1], "data": ["abc"]}
    return {
        "inputs": [n | changes.pop("n", {}), t | changes.pop("t", {})],
        "outputs": [{"name": "n2"}, {"name": "t2"}],
        **changes,
    }


def infer(server: Server, body: Any, **headers: str) -> tuple[int, Any]:
    status, _, answer = ask(server, "POST", "/v2/models/m/infer", body, **headers)
    return status, json.loads(answer)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v2", {"name": "builder-onnxruntime", "version": __version__, "extensions": ["binary_tensor_data"]}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/m/ready", {"name": "m", "ready": True}),
        ("/v2/models/m/versions/1/ready?x=1", {"name": "m", "ready": True}),
    ],
)
def test_what_is_there(server: Server, path: str, said: dict[str, Any]) -> None:
    status, _, body = ask(server, "GET", path)
    assert (status, json.loads(body)) == (200, said)


def test_metadata(server: Server) -> None:
    said = json.loads(ask(server, "GET", "/v2/models/m")[2])
    assert (said["name"], said["versions"], said["platform"]) == ("m", ["1"], "test")
    assert said["inputs"][0] == {"name": "n", "datatype": "INT64", "shape": [-1, 2]}
    assert [o["name"] for o in said["outputs"]] == ["n2", "t2", "z"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/m/versions/2", 404),
        ("GET", "/v2/models/m/nope", 404),
        ("GET", "/v2/models/m/infer", 405),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/m", 405),
        ("PUT", "/v2/models/m", 501),
    ],
)
def test_what_is_not_there(server: Server, method: str, path: str, status: int) -> None:
    answered, _, body = ask(server, method, path, b"{}" if method == "POST" else None)
    assert answered == status
    assert method == "PUT" or list(json.loads(body)) == ["error"]


def test_json_in_json_out(server: Server) -> None:
    status, said = infer(server, request(id="7"))
    assert (status, said["model_name"], said["model_version"], said["id"]) == (200, "m", "1", "7")
    assert said["outputs"] == [
        {"name": "n2", "datatype": "INT64", "shape": [1, 2], "data": [6, 8]},
        {"name": "t2", "datatype": "BYTES", "shape": [1], "data": ["cba"]},
    ]


def test_rows_may_be_nested(server: Server) -> None:
    _, said = infer(server, request(n={"shape": [2, 2], "data": [[1, 2], [3, 4]]}))
    assert said["outputs"][0]["data"] == [2, 4, 6, 8]


def test_bytes_in_bytes_out(server: Server) -> None:
    n, t = struct.pack("<2q", 5, 1 << 40), struct.pack("<I", 4) + "étr".encode()
    body = request(n={"parameters": {"binary_data_size": 16}}, t={"parameters": {"binary_data_size": 8}})
    for one in body["inputs"]:
        del one["data"]
    body["outputs"][0]["parameters"] = {"binary_data": True}
    header = json.dumps(body).encode()
    status, headers, answer = ask(server, "POST", "/v2/models/m/infer", header + n + t, **{HEADER: str(len(header))})
    assert status == 200
    size = int(headers[HEADER])
    said = json.loads(answer[:size])
    assert said["outputs"][0] == {"name": "n2", "datatype": "INT64", "shape": [1, 2], "parameters": {"binary_data_size": 16}}
    assert struct.unpack("<2q", answer[size:]) == (10, 1 << 41)
    assert said["outputs"][1]["data"] == ["rté"]


def test_the_client_and_the_server_agree(server: Server) -> None:
    """All outputs, in bytes."""
    url = f"http://127.0.0.1:{server.server_address[1]}"
    model = v2.metadata(url, "m")
    n, t, z = v2.infer(url, "m", v2.prompt_inputs(model, "a b"), timeout_s=BOUND_S)
    assert (n.name, n.shape, t.data) == ("n2", (1, 2), struct.pack("<I", 3) + b"b a")
    assert z.summary()["first"] == [float("inf")]


@pytest.mark.parametrize(("first", "asked"), [(-1, [(3, 5)]), (1, [(1, 5)])])
def test_a_batch_is_one_request_where_the_model_takes_batches(
    server: Server, monkeypatch: pytest.MonkeyPatch, first: int, asked: list[tuple[int, int]]
) -> None:
    shapes: list[tuple[int, int]] = []

    def infer(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        shapes.append(inputs["x"].shape)
        return [inputs["x"]]

    spec = (Spec("x", "FP32", (first, -1)),)
    for name, value in {"inputs": spec, "outputs": spec, "infer": infer}.items():
        monkeypatch.setattr(server.model, name, value)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    report = level_of("v2")(url, "m", concurrency=3, requests=3, prompt_tokens=5, max_tokens=1, timeout_s=BOUND_S, seed=1)
    # One may run and one may wait here, so of three single ones at once, some may be turned away.
    assert (shapes if first < 0 else list(set(shapes))) == asked
    assert report.tokens == 3 - report.errors


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "413"),
        (b"[" * 4000, "not JSON"),
        ([], "expected a JSON object"),
        ({}, "inputs: expected a list"),
        (request(inputs=["n"]), "inputs: expected a list of objects"),
        (request(inputs=[]), "input n, t: missing"),
        (request(n={"name": "x"}), "input 'x': the model has no such input; it takes n, t"),
        (request(t={"name": "n", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}), "input 'n': given twice"),
        (request(n={"datatype": "INT32"}), "input n: datatype 'INT32', expected INT64"),
        (request(n={"shape": [2]}), "input n: shape [2], expected [-1, 2]"),
        (request(n={"shape": [1, 3]}), "input n: shape [1, 3], expected [-1, 2]"),
        (request(n={"shape": [-1, 2]}), "expected a list of whole numbers"),
        (request(n={"shape": [True, 2]}), "expected a list of whole numbers"),
        (request(n={"shape": [1000000000, 2]}), "input n: 2 values for shape"),
        (request(n={"data": [1]}), "input n: 1 values for shape [1, 2]"),
        (request(n={"data": [1.5, 2]}), "expected INT64"),
        (request(n={"data": [True, 2]}), "expected INT64"),
        (request(n={"data": [1 << 70, 2]}), "input n: 2 values"),
        (request(n={"data": ["1", 2]}), "expected INT64"),
        (request(n={"data": None}), "input n: no data"),
        (request(t={"data": [1]}), "expected text, found 1"),
        (request(n={"parameters": {"binary_data_size": 16}}), "binary_data_size 16, but 0 bytes are left"),
        (request(n={"parameters": {"binary_data_size": "x"}}), "expected a whole number"),
        (request(n={"parameters": {"shared_memory_region": "r"}}), "no shared memory"),
        (request(n={"parameters": []}), "ok"),
        (request(n={"parameters": [1]}), "inputs: expected a list of objects"),
        (request(outputs=[{"name": "y"}]), "output 'y': the model gives n2, t2, z"),
        (request(outputs=[{"name": "n2", "parameters": {"classification": 2}}]), "classification"),
        (request(n={"data": [-1, 2]}), "m: negative"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(server: Server, body: Any, said: str) -> None:
    status, answer = infer(server, body)
    if said == "ok":
        assert status == 200
    elif said == "413":
        assert status == 413
    else:
        assert status == 400
        assert said in answer["error"]


def test_bytes_that_do_not_fit_are_refused(server: Server) -> None:
    body = request(n={"parameters": {"binary_data_size": 8}, "data": None})
    header = json.dumps(body).encode()
    assert "8 bytes, expected 16" in infer(server, header + bytes(8), **{HEADER: str(len(header))})[1]["error"]
    header = json.dumps(request(t={"parameters": {"binary_data_size": 6}})).encode()
    text = struct.pack("<I", 9) + b"ab"
    assert "runs past its 6 bytes" in infer(server, header + text, **{HEADER: str(len(header))})[1]["error"]
    header = json.dumps(request()).encode()
    assert "2 bytes after the last" in infer(server, header + b"xx", **{HEADER: str(len(header))})[1]["error"]
    assert "but the request has" in infer(server, header, **{HEADER: str(len(header) + 1)})[1]["error"]


def test_infinity_has_no_json(server: Server) -> None:
    status, answer = infer(server, request(outputs=[{"name": "z"}]))
    assert status == 500
    assert "ask for binary_data_output" in answer["error"]


def test_a_large_request_is_refused_unread(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), 10) as sock:
        sock.sendall(f"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT + 1}\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_request_of_unknown_length_is_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), 10) as sock:
        sock.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 411")


def test_one_connection_serves_several_requests(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=BOUND_S)
    with closing(connection):
        for wrong in (False, True, False):
            connection.request("POST", "/v2/models/m/infer", json.dumps({} if wrong else request()))
            answer = connection.getresponse()
            answer.read()
            assert answer.status == (400 if wrong else 200)


def test_one_runs_one_waits_and_one_is_refused(server: Server) -> None:
    go, model = threading.Event(), server.model
    assert isinstance(model, Model)
    model.hold = go.wait
    statuses: list[int] = []
    asking = [threading.Thread(target=lambda: statuses.append(infer(server, request())[0])) for _ in range(2)]
    for thread in asking:
        thread.start()
    assert model.running.acquire(timeout=BOUND_S)
    while server._queued < 2:  # the second waits for its turn
        pass
    status, headers, body = ask(server, "POST", "/v2/models/m/infer", request())
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "2 requests run or wait" in json.loads(body)["error"]
    assert ask(server, "GET", "/v2/health/ready")[0] == 200
    assert not model.running.acquire(blocking=False), "two at a time"
    go.set()
    for thread in asking:
        thread.join(BOUND_S)
    assert statuses == [200, 200]
    server.drained()


WAITING = """
import sys, time
from pathlib import Path
import numpy as np
from builder.runtime.onnxruntime import serve
from builder.runtime.v2_server import Limits, Server, Spec

class Model:
    name, platform = "m", "test"
    inputs = outputs = (Spec("n", "INT64", (1,)),)
    def infer(self, inputs, outputs):
        Path("running").touch()
        while not Path("go").exists():
            time.sleep(0.01)
        return [inputs["n"]]

server = Server(("127.0.0.1", 0), Model(), Limits(1, 1, 8, 4096))
Path("port").write_text(str(server.server_address[1]))
Path("port").rename("open")
serve(server, "test")
"""


def test_a_running_request_is_answered_after_sigterm(tmp_path: Path) -> None:
    def wait(name: str) -> Path:
        while not (tmp_path / name).exists():
            assert process.poll() is None
            time.sleep(0.01)
        return tmp_path / name

    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", WAITING], cwd=tmp_path, env=env) as process:
        connection = http.client.HTTPConnection("127.0.0.1", int(wait("open").read_text()), timeout=BOUND_S)
        with closing(connection):
            body = {"inputs": [{"name": "n", "datatype": "INT64", "shape": [1], "data": [7]}]}
            connection.request("POST", "/v2/models/m/infer", json.dumps(body))
            wait("running")
            process.send_signal(signal.SIGTERM)
            while still_open(connection.port):
                time.sleep(0.01)
            assert process.poll() is None
            (tmp_path / "go").touch()
            answer = connection.getresponse()
            assert json.loads(answer.read())["outputs"][0]["data"] == [7]
        assert process.wait(BOUND_S) == 0


def still_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True
