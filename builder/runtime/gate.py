"""The public port while the engine is not ready: hold early connections, then relay raw bytes.

    waiting   a connection is accepted and held, unread beyond 64 KiB; at most `limit` of them.
              One more gets 503 with Retry-After at once, so that a client or balancer can go elsewhere.
    open      held connections are let through in the order they came; later ones pass directly.
    closed    held and new connections get 503.

Relaying is byte for byte and unbuffered: streamed tokens leave as they arrive, keep-alive and upgrades work, and each
client connection has one connection to the engine. A client's half-close is passed on; a client that goes away takes its engine
connection with it, so that the engine stops computing. Back-pressure is passed on by pausing the other side's reads.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Coroutine
from typing import Any, cast

from builder.runtime.http import interface, listening, response

RETRY_AFTER_S = 5
HELD_BYTES = 64 << 10  # of one held request, in memory; the rest waits in the client's socket
LINGER_S = 2.0  # for a refused client to read its answer before the connection goes
CONNECT_S = 10.0
WAITING, OPEN, CLOSED = "waiting", "open", "closed"


class Gate:
    """Counters are for /metrics; all of it runs on the event loop's thread."""

    def __init__(self, limit: int, upstream_port: int, protocol: str = "openai") -> None:
        self.limit, self.upstream_port, self.protocol = limit, upstream_port, protocol
        self.state = WAITING
        self.reason = "starting"
        self.held: dict[_Client, float] = {}  # in order of arrival; when it came
        self.relaying: set[_Client] = set()
        self.held_total = self.rejected_total = self.relayed_total = 0
        self.held_seconds = 0.0
        self.server: asyncio.AbstractServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int) -> None:
        """Raises CapabilityError if the port is taken or may not be opened, ConfigError if the host is not this machine."""
        loop = asyncio.get_running_loop()
        with listening(host, port, "BUILDER_PORT"):
            self.server = await loop.create_server(lambda: _Client(self), interface(host), port, backlog=1024)

    def open(self) -> None:
        """Let the held connections through, first come first served, and later ones directly."""
        self.state = OPEN
        for client in list(self.held):
            self._release(client)
            self._relay(client)

    def close(self, reason: str) -> None:
        """Stop listening; answer what is held with 503 and `reason`. Running relays go on."""
        self.state, self.reason = CLOSED, reason
        if self.server:
            self.server.close()
        for client in list(self.held):
            self._release(client)
            client.refuse(reason)

    async def flushed(self) -> None:
        """Refusals are on the wire: nothing is left to linger for, or LINGER_S have passed."""
        await asyncio.sleep(0)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LINGER_S)

    def arrived(self, client: _Client) -> None:
        if self.state == OPEN:
            self._relay(client)
        elif self.state == WAITING and len(self.held) < self.limit:
            self.held[client] = time.monotonic()
            self.held_total += 1
        else:
            self.rejected_total += 1
            full = f"{self.limit} requests are waiting already"
            client.refuse(full if self.state == WAITING else self.reason)

    def gone(self, client: _Client) -> None:
        self._release(client)
        self.relaying.discard(client)

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Keep a reference to a task until it is done; the event loop keeps none."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _release(self, client: _Client) -> None:
        came = self.held.pop(client, None)
        if came is not None:
            self.held_seconds += time.monotonic() - came

    def _relay(self, client: _Client) -> None:
        self.relaying.add(client)
        self.relayed_total += 1
        self.run(client.connect())


class _Side(asyncio.Protocol):
    """One of two connections that are joined: bytes, ends and back-pressure of one go to the other."""

    transport: asyncio.Transport
    peer: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if isinstance(sock := transport.get_extra_info("socket"), socket.socket):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self.peer and not self.peer.transport.is_closing():
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        """The engine has closed: what it said is flushed to the client, then both connections end."""
        return False

    def pause_writing(self) -> None:
        if self.peer and not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer:
            self.peer.transport.close()
            self.peer.peer = None
            self.peer = None


class _Client(_Side):
    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.early = bytearray()
        self.refused = self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.gate.arrived(self)

    def data_received(self, data: bytes) -> None:
        if self.peer:
            super().data_received(data)
        elif not self.refused:
            self.early += data
            if len(self.early) >= HELD_BYTES:
                self.transport.pause_reading()

    def eof_received(self) -> bool:
        """Half-closed. While held it means that the client has given up (as nginx sees it), and its place becomes free."""
        if self.peer:
            if not self.peer.transport.is_closing():
                self.peer.transport.write_eof()
            return True
        self.ended = self in self.gate.relaying
        return self.ended

    def connection_lost(self, exc: Exception | None) -> None:
        self.gate.gone(self)
        super().connection_lost(exc)

    async def connect(self) -> None:
        """Join this client to the engine, and send on what it has said so far."""
        loop = asyncio.get_running_loop()
        try:
            _, peer = await asyncio.wait_for(loop.create_connection(_Side, "127.0.0.1", self.gate.upstream_port), CONNECT_S)
        except (OSError, asyncio.TimeoutError):
            self.gate.gone(self)
            self.refuse("the engine does not accept connections")
            return
        if self.transport.is_closing():
            peer.transport.close()
            return
        self.peer, peer.peer = peer, self
        if self.early:
            peer.transport.write(bytes(self.early))
            self.early.clear()
        if self.ended:
            peer.transport.write_eof()
        self.transport.resume_reading()

    def refuse(self, reason: str) -> None:
        """503, then a close that lets the answer arrive: closing with unread bytes would reset the connection."""
        self.refused = True
        self.early.clear()
        message = f"not ready: {reason}"
        openai = {"message": message, "type": "unavailable", "code": 503}
        body = json.dumps({"error": message if self.gate.protocol == "v2" else openai}).encode()
        self.transport.write(response(503, body, {"Retry-After": str(RETRY_AFTER_S)}))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.transport.resume_reading()
        self.gate.run(self._linger())

    async def _linger(self) -> None:
        for _ in range(int(LINGER_S / 0.02)):
            if self.transport.is_closing():
                return
            await asyncio.sleep(0.02)
        self.transport.abort()
