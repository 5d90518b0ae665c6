"""Waiting for ready, against a real HTTP server in a thread; the process behind it is played by a few lines."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from builder.errors import BuilderError
from builder.progress import NoProgress
from builder.verify import server
from builder.verify.in_place import free_ports
from tests.bounds import BOUND_S

PHASE = {"phase": "weights_all", "start": 1.0, "end": 2.0, "lane": "container", "detail": {}}


class Control(ThreadingHTTPServer):
    """A control port. answers: statuses of /ready, one after another; the last one stays."""

    daemon_threads = True

    def __init__(self, answers: list[int], phases: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.phases = answers, phases


class Handler(BaseHTTPRequestHandler):
    server: Control

    def do_GET(self) -> None:
        status, body = 200, self.server.phases
        if self.path == "/ready":
            status, body = self.server.answers[0], b"{}"
            if len(self.server.answers) > 1:
                self.server.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None: ...


class Behind:
    """The process behind the port."""

    def __init__(self, control_port: int, *, ended: str | None = None, log: str = "") -> None:
        self.host, self.port, self.control_port = "127.0.0.1", 1, control_port
        self.asked, self.gpu, self.log = time.time(), False, log
        self.notes: list[str] = []
        self._ended = ended

    def started(self) -> float:
        return self.asked

    def ended(self) -> str | None:
        return self._ended

    def logs(self, lines: int) -> str:
        return "\n".join(self.log.splitlines()[-lines:])

    def look(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def control() -> Iterator[Control]:
    made = Control([503, 503, 200], json.dumps([PHASE]).encode())
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def wait(behind: Behind, timeout_s: float = BOUND_S) -> server.Readiness:
    return server.wait_ready(behind, timeout_s=timeout_s, progress=NoProgress(), title="start")


def test_ready_counts_what_was_said_before(control: Control) -> None:
    found = wait(Behind(control.server_address[1]))
    assert (found.denied, found.refused) == (2, 0)
    assert found.at - time.time() + 1 >= 2 * server.POLL_S * 0.9


def test_a_server_that_ended_stops_the_wait_at_once() -> None:
    started = time.monotonic()
    log = "\n".join(f"line {i}" for i in range(100))
    with pytest.raises(BuilderError, match=r"ended before it was ready: exit status 9") as caught:
        wait(Behind(free_ports()[0], ended="exit status 9", log=log), timeout_s=BOUND_S)
    assert time.monotonic() - started < 60
    assert "| line 99" in caught.value.message
    assert "line 74" not in caught.value.message


def test_a_server_that_never_is_ready_meets_the_deadline(control: Control) -> None:
    control.answers[:] = [503]
    with pytest.raises(BuilderError, match=r"not ready after 0 s \(.*weights_all done\)") as caught:
        wait(Behind(control.server_address[1]), timeout_s=0.3)
    assert "(it wrote nothing)" in caught.value.message


def test_a_port_that_nobody_answers_is_refused_not_denied() -> None:
    with pytest.raises(BuilderError, match=r"starting, no answer at 127\.0\.0\.1:\d+ yet"):
        wait(Behind(free_ports()[0]), timeout_s=0.3)


def test_the_note_names_the_phase_that_is_done(control: Control) -> None:
    class Notes(NoProgress):
        seen: list[str] = []  # noqa: RUF012

        def note(self, task: int, text: str) -> None:
            self.seen.append(text)

    control.answers[:] = [503] * 14 + [200]
    server.wait_ready(Behind(control.server_address[1]), timeout_s=BOUND_S, progress=Notes(), title="start")
    assert any("weights_all done" in text for text in Notes.seen)


@pytest.mark.parametrize("body", [b"{", b'{"a": 1}', b"[1, null]", b'[{"phase": 1}]'])
def test_phases_that_are_no_phases_are_none(control: Control, body: bytes) -> None:
    control.phases = body
    assert server.phases(Behind(control.server_address[1])) == []


def test_phases_are_read(control: Control) -> None:
    (found,) = server.phases(Behind(control.server_address[1]))
    assert (found.phase, found.seconds) == ("weights_all", 1.0)
