"""What `serve` does once it was told to stop, how it takes its ports, and how it starts programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from builder.errors import BuilderError, CapabilityError, ConfigError
from builder.format.manifest import Manifest
from builder.format.volume import use_file
from builder.runtime import settings
from builder.runtime.children import LAUNCHER
from builder.runtime.control import Control
from builder.runtime.gate import WAITING, Gate
from builder.runtime.record import Recorder
from builder.runtime.serve import STOP, Serve, _cancel
from builder.runtime.weights import Found
from builder.transfer.lease import hold

FOUND = Found(Path("/m"), Manifest("m", "", "", "", (), ()), "sha256:0", "here", 0, 0, None, 0.0)
CHUNK = b'data: {"choices": [{"delta": {"content": "w"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


class Engine(ThreadingHTTPServer):
    """Answers each question with one word, at once; `on_request(n)` hears of the nth."""

    def __init__(self) -> None:
        engine = self
        self.asked = 0
        self.on_request: Callable[[int], None] = lambda _: None

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                engine.asked += 1
                engine.on_request(engine.asked)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(CHUNK)

            def log_message(self, *_: Any) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def engine() -> Iterator[Engine]:
    server = Engine()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def serve(**env: str) -> Serve:
    """A start whose loop runs, told nothing yet."""
    made = Serve(settings.read({f"BUILDER_{name}": value for name, value in env.items()}), Recorder(), time.time())
    made.stopped = asyncio.get_running_loop().create_future()
    return made


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(scenario(), 20)

    asyncio.run(whole())


def test_a_stopped_start_never_becomes_ready(engine: Engine) -> None:
    async def scenario() -> None:
        one = serve()
        one.state.engine_port = engine.server_port
        one._stop(signal.SIGTERM)
        await one._warm(FOUND)
        one._ready()
        assert (one.state.step, one.state.ready, one.state.ready_at) == ("stopping", False, 0.0)
        assert one.gate
        assert one.gate.state not in (WAITING, "open")
        assert (engine.asked, one.recorder.phases) == (0, [])

    run(scenario)


def test_a_server_notes_now_and_then_that_it_uses_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.runtime.serve.TOUCH_S", 0.01)
    folder = tmp_path / ("0" * 64)

    async def scenario() -> None:
        one = serve()
        lease = hold(folder, create=True)
        os.utime(use_file(folder), (100, 100))
        one.state.found = replace(FOUND, lease=lease)
        using = asyncio.ensure_future(one._using())
        while use_file(folder).stat().st_mtime == 100:
            await asyncio.sleep(0.01)
        using.cancel()
        lease.release()

    run(scenario)


def test_work_that_loses_its_first_cancel_is_ended_all_the_same() -> None:
    """As wait_for() of Python 3.11 loses it; a start that waits for the engine's end would then wait for ever."""

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def scenario() -> None:
        task = asyncio.ensure_future(stubborn())
        await asyncio.sleep(0)
        await _cancel(task)
        assert task.cancelled()

    run(scenario)


def test_a_stop_during_the_warm_up_ends_it(engine: Engine) -> None:
    async def scenario() -> None:
        one = serve(WARMUP_BATCH="1,1,1,1")
        one.state.engine_port = engine.server_port
        loop = asyncio.get_running_loop()

        def stop_at_the_second(n: int) -> None:
            if n == 2:  # the first of the warm-up proper
                loop.call_soon_threadsafe(one._stop, signal.SIGTERM)
                time.sleep(0.2)

        engine.on_request = stop_at_the_second
        await one._warm(FOUND)
        assert engine.asked == 2
        assert one.state.step == "stopping"
        assert [p.phase for p in one.recorder.phases] == ["first_token"]

    run(scenario)


async def listen_control(host: str, port: int) -> None:
    await Control(serve(HOST=host, CONTROL_PORT=str(port), PORT="1")).listen()


async def listen_gate(host: str, port: int) -> None:
    await Gate(1, 1).listen(host, port)


async def probe_engine_port(host: str, port: int) -> None:
    await serve(HOST=host, PORT=str(port), CONTROL_PORT="1", QUEUE="0")._claim_port()


LISTENERS = pytest.mark.parametrize(
    ("listen", "variable"),
    [
        (listen_control, "BUILDER_CONTROL_PORT"),
        (listen_gate, "BUILDER_PORT"),
        (probe_engine_port, "BUILDER_PORT"),
    ],
)


def refusal(listen: Callable[[str, int], Awaitable[None]], host: str, port: int) -> BuilderError:
    with pytest.raises(BuilderError) as caught:
        run(lambda: listen(host, port))
    return caught.value


@LISTENERS
@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "192.0.2.1"])  # unknown, not a name, not this machine's
def test_a_host_that_is_not_here_is_named(listen: Callable[[str, int], Awaitable[None]], variable: str, host: str) -> None:
    error = refusal(listen, host, 54321)
    assert isinstance(error, ConfigError)
    assert error.message.startswith(f"BUILDER_HOST={host!r}: ")
    assert "BUILDER_HOST" in error.hint
    assert variable not in error.hint


@LISTENERS
def test_a_port_that_is_taken_is_named(listen: Callable[[str, int], Awaitable[None]], variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = refusal(listen, "127.0.0.1", port)
    assert isinstance(error, CapabilityError)
    assert f"port {port} of 127.0.0.1: " in error.message
    assert error.hint == f"set {variable} to a free port"


def test_a_probed_port_is_free_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    run(lambda: probe_engine_port("127.0.0.1", port))
    socket.create_server(("127.0.0.1", port)).close()


SIGNALS_OF_A_PROGRAM = """
import json, sys
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
json.dump([int(lines[name], 16) for name in ("SigBlk", "SigIgn")], sys.stdout)
"""


def test_a_program_starts_with_no_signal_ignored_or_blocked() -> None:
    """As under `nohup`, or as a background job of a shell script: both are inherited through exec."""

    def deaf() -> None:
        for number in STOP:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [*STOP, signal.SIGUSR1])

    argv = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), sys.executable, "-I", "-c", SIGNALS_OF_A_PROGRAM]
    done = subprocess.run(argv, preexec_fn=deaf, capture_output=True, text=True, check=True)
    blocked, ignored = json.loads(done.stdout)
    assert blocked == 0
    assert [number for number in STOP if ignored >> (number - 1) & 1] == []
