"""The gate between real sockets: what a client sends arrives as it is, and ends are passed on."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable

import pytest

from builder.runtime.gate import HELD_BYTES, Gate

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


opened: list[asyncio.AbstractServer] = []


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """The scenario on an event loop of its own; the servers it opened are closed with it."""

    async def whole() -> None:
        try:
            await asyncio.wait_for(scenario(), 20)
        finally:
            while opened:
                opened.pop().close()
            await asyncio.sleep(0.01)  # transports close on the next turn of the loop

    asyncio.run(whole())


async def upstream(handler: Callable[[Reader, Writer], Awaitable[None]]) -> int:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    opened.append(server)
    return int(server.sockets[0].getsockname()[1])


async def public(gate: Gate) -> int:
    await gate.listen("127.0.0.1", 0)
    assert isinstance(gate.server, asyncio.Server)
    opened.append(gate.server)
    return int(gate.server.sockets[0].getsockname()[1])


async def echo(reader: Reader, writer: Writer) -> None:
    while part := await reader.read(65536):
        writer.write(part)
        await writer.drain()
    writer.close()


def test_large_bodies_pass_both_ways_and_a_half_close_is_passed_on() -> None:
    async def scenario() -> None:
        gate = Gate(4, await upstream(echo))
        reader, writer = await asyncio.open_connection("127.0.0.1", await public(gate))
        body = os.urandom(8 << 20)  # far more than all buffers: back-pressure must stop and start both sides
        writer.write(body[:100])
        await asyncio.sleep(0.05)
        gate.open()

        async def send() -> None:
            writer.write(body[100:])
            await writer.drain()
            writer.write_eof()

        sending = asyncio.ensure_future(send())
        assert await reader.read(-1) == body
        await sending
        writer.close()

    run(scenario)


def test_held_memory_is_bounded() -> None:
    async def scenario() -> None:
        gate = Gate(4, await upstream(echo))
        reader, writer = await asyncio.open_connection("127.0.0.1", await public(gate))
        body = os.urandom(4 << 20)
        writer.write(body)
        await asyncio.sleep(0.2)
        [client] = gate.held
        assert HELD_BYTES <= len(client.early) <= HELD_BYTES + (256 << 10)
        gate.open()
        assert await reader.readexactly(len(body)) == body
        writer.close()

    run(scenario)


def test_the_held_are_let_through_in_order() -> None:
    async def scenario() -> None:
        came: list[bytes] = []

        async def note(reader: Reader, writer: Writer) -> None:
            came.append(await reader.readline())
            writer.close()

        gate = Gate(64, await upstream(note))
        port = await public(gate)
        clients = []
        for n in range(20):
            clients.append(await asyncio.open_connection("127.0.0.1", port))
            clients[-1][1].write(b"%d\n" % n)
            while len(gate.held) <= n:
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        gate.open()
        for reader, writer in clients:
            await reader.read()
            writer.close()
        assert came == [b"%d\n" % n for n in range(20)]
        assert (gate.held_total, gate.rejected_total, len(gate.held)) == (20, 0, 0)
        assert gate.held_seconds > 0

    run(scenario)


@pytest.mark.parametrize("protocol", ["openai", "v2"])
def test_a_refusal_has_the_shape_of_the_engines_protocol(protocol: str) -> None:
    async def scenario() -> None:
        gate = Gate(0, 9, protocol)
        reader, writer = await asyncio.open_connection("127.0.0.1", await public(gate))
        error = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])["error"]
        assert "0 requests are waiting" in (error if protocol == "v2" else error["message"])
        writer.close()

    run(scenario)


def test_an_engine_that_refuses_is_503() -> None:
    async def scenario() -> None:
        gate = Gate(4, 9)
        port = await public(gate)
        gate.open()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 5\r\n" in answer
        writer.close()

    run(scenario)


def test_an_engine_that_closes_ends_the_client_after_its_last_byte() -> None:
    async def scenario() -> None:
        async def once(reader: Reader, writer: Writer) -> None:
            await reader.readline()
            writer.write(b"z" * 2_000_000)
            writer.close()

        gate = Gate(4, await upstream(once))
        port = await public(gate)
        gate.open()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"go\n")
        assert len(await reader.read(-1)) == 2_000_000
        writer.close()
        while gate.relaying:
            await asyncio.sleep(0.01)

    run(scenario)


def test_a_closed_gate_answers_what_it_held() -> None:
    async def scenario() -> None:
        gate = Gate(4, 9)
        port = await public(gate)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 500000\r\n\r\n" + b"x" * 300_000)
        while not gate.held:
            await asyncio.sleep(0.01)
        gate.close("the engine has ended")
        assert b'"not ready: the engine has ended"' in await reader.read()
        writer.close()
        await gate.flushed()

    run(scenario)
