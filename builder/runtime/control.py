"""The control port: /live /ready /metrics /phases. It answers from the first moment, and never runs inference.

    /live     200 while this process runs its event loop
    /ready    200 after the warm-up, while the engine is alive and its health path answers; else 503; JSON says why
    /metrics  Prometheus text
    /phases   the phases so far, as a JSON list

A health check that is slow is not one that fails: a busy engine stays ready for 15 s of silence, one that refuses
connections or answers with another status is unready at once. So load does not make the pod flap.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from builder import __version__
from builder.format.phases import unaccounted
from builder.runtime.http import HEAD_BYTES, interface, listening, read_request, response, status_of
from builder.runtime.metrics import CONTENT_TYPE, Metric, metric, render

if TYPE_CHECKING:
    from builder.runtime.serve import Serve

CACHE_S = 1.0  # several probers cause one health check a second
PING_S = 2.0
BUSY_S = 15.0


class Control:
    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self._health = ""  # "" or why not
        self._checked = self._answered = 0.0
        self._lock = asyncio.Lock()

    async def listen(self) -> None:
        """Raises CapabilityError if the port is taken or may not be opened, ConfigError if the host is not this machine."""
        host, port = self.serve.settings.host, self.serve.settings.control_port
        with listening(host, port, "BUILDER_CONTROL_PORT", what="control port"):
            self._server = await asyncio.start_server(self._handle, interface(host), port, limit=HEAD_BYTES)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                if request := await read_request(reader):
                    writer.write(await self._answer(*request))
                    await writer.drain()
            finally:
                writer.close()

    async def _answer(self, method: str, path: str) -> bytes:
        head = method == "HEAD"
        if method not in ("GET", "HEAD"):
            return response(405, _json({"error": f"{method} is not answered here"}), {"Allow": "GET, HEAD"})
        if path == "/live":
            return response(200, _json({"live": True}), head=head)
        if path == "/ready":
            reason = await self.unready()
            return response(503 if reason else 200, _json(self._status(reason)), head=head)
        if path == "/metrics":
            reason = await self.unready()
            return response(200, render(self.metrics(reason)), content_type=CONTENT_TYPE, head=head)
        if path == "/phases":
            return response(200, _json([asdict(p) for p in self.serve.recorder.phases]), head=head)
        return response(404, _json({"error": f"{path}: try /live /ready /metrics /phases"}), head=head)

    async def unready(self) -> str:
        """Why requests should not come here now; "" if they may."""
        state = self.serve.state
        if not state.ready:
            return state.step
        if state.engine is None or state.engine.ended.done():
            return "the engine has ended"
        async with self._lock:
            now = time.monotonic()
            if now - self._checked >= CACHE_S:
                self._health = await self._ping()
                self._checked = time.monotonic()
        return self._health

    async def _ping(self) -> str:
        path, state = self.serve.engine.health, self.serve.state
        try:
            status = await status_of(state.engine_host, state.engine_port, path, timeout_s=PING_S)
        except TimeoutError:
            silent = time.monotonic() - (self._answered or self._checked)
            return f"the engine is silent for {silent:.0f} s" if self._answered and silent > BUSY_S else ""
        except (OSError, ValueError) as exc:
            return f"the engine's {path}: {exc}"
        self._answered = time.monotonic()
        return "" if status == 200 else f"the engine's {path} answers {status}"

    def _status(self, reason: str) -> dict[str, Any]:
        state = self.serve.state
        return {
            "ready": not reason,
            "reason": reason,
            "step": state.step,
            "model": state.found.manifest.name if state.found else self.serve.settings.model,
            "digest": state.found.digest if state.found else "",
            "engine": self.serve.settings.engine,
            "engine_pid": state.engine.pid if state.engine else None,
        }

    def metrics(self, unready: str) -> list[Metric]:
        serve, state = self.serve, self.serve.state
        phases = serve.recorder.phases
        end = state.ready_at or time.time()
        info = {"version": __version__, "engine": serve.settings.engine, **_model(serve)}
        return [
            metric("builder_info", "gauge", "What runs here; always 1.", [(info, 1)]),
            metric("builder_ready", "gauge", "1 if requests may come here.", not unready),
            metric("builder_engine_up", "gauge", "1 while the engine's process runs.", _alive(serve)),
            metric("builder_process_start_time_seconds", "gauge", "When the process began, since the epoch.", state.began),
            metric("builder_start_seconds", "gauge", "From the process's beginning until ready or now.", end - state.began),
            metric("builder_phase_seconds", "gauge", "Duration of each finished phase of this start; phases may overlap.",
                   {p.phase: ({"phase": p.phase, "lane": p.lane}, p.seconds) for p in phases}.values()),
            metric("builder_unaccounted_seconds", "gauge", "Part of the start that no phase covers.",
                   unaccounted(phases, state.began, end)),
            *_weights(serve),
            *_compiled(serve),
            *_queue(serve),
        ]  # fmt: skip


def _model(serve: Serve) -> dict[str, str]:
    found = serve.state.found
    return {"model": found.manifest.name, "digest": found.digest} if found else {"model": serve.settings.model, "digest": ""}


def _alive(serve: Serve) -> bool:
    return serve.state.engine is not None and not serve.state.engine.ended.done()


def _weights(serve: Serve) -> list[Metric]:
    if not (found := serve.state.found):
        return []
    return [
        metric("builder_weights_bytes", "gauge", "Size of the model.", found.manifest.size),
        metric("builder_weights_fetched_bytes", "gauge", "Bytes this start read from the store.", found.fetched_bytes),
    ]


def _compiled(serve: Serve) -> list[Metric]:
    """Absent where the image has no cache root; the second until the warm-up is over."""
    state = serve.state
    if state.captured.root is None:
        return []
    hit = metric("builder_compile_cache_hit", "gauge", "1 if a captured cache is in use.", state.captured.result == "hit")
    if state.fresh is None:
        return [hit]
    text = "Files that the engine compiled in this start, beside those it found."
    return [hit, metric("builder_compile_cache_new_files", "gauge", text, state.fresh.files)]


def _queue(serve: Serve) -> list[Metric]:
    if not (gate := serve.gate):
        return []
    return [
        metric("builder_queue_limit", "gauge", "Connections held at most.", gate.limit),
        metric("builder_queue_depth", "gauge", "Connections held now.", len(gate.held)),
        metric("builder_queue_held_total", "counter", "Connections that were held.", gate.held_total),
        metric("builder_queue_held_seconds_total", "counter", "Time connections were held, summed.", gate.held_seconds),
        metric("builder_queue_rejected_total", "counter", "Connections answered with 503.", gate.rejected_total),
        metric("builder_relay_connections", "gauge", "Connections joined to the engine now.", len(gate.relaying)),
        metric("builder_relay_connections_total", "counter", "Connections joined to the engine.", gate.relayed_total),
    ]


def _json(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
