"""As much HTTP/1.1 as the control port needs: read one request's head, write one response, ping a health path."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator, Mapping

from builder.errors import CapabilityError, ConfigError

HEAD_BYTES = 16 << 10
HEAD_S = 5.0
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


def interface(host: str) -> str | None:
    """What asyncio should listen on: None, all of IPv4 and IPv6, for "::", which asyncio itself takes as IPv6 alone."""
    return None if host == "::" else host


@contextlib.contextmanager
def listening(host: str, port: int, variable: str, *, what: str = "port") -> Iterator[None]:
    """Around a bind: what goes wrong is the fault of BUILDER_HOST, or of the port that `variable` sets.

    Raises ConfigError if `host` is no address of this machine, CapabilityError if the port is taken or may not be opened.
    """
    try:
        yield
    except UnicodeError as exc:  # a label that is empty or longer than 63 characters
        raise _not_here(host, "not a host name") from exc
    except OSError as exc:
        # Newer versions of asyncio skip addresses that are not available, and give no errno when none is left.
        if isinstance(exc, socket.gaierror) or exc.errno in (errno.EADDRNOTAVAIL, None):
            raise _not_here(host, exc.strerror or str(exc)) from exc
        raise CapabilityError(f"{what} {port} of {host}: {exc.strerror}", hint=f"set {variable} to a free port") from exc


def _not_here(host: str, why: str) -> ConfigError:
    return ConfigError(
        f"BUILDER_HOST={host!r}: {why}; expected an address or a name of this machine", hint="correct or unset BUILDER_HOST"
    )


def response(
    status: int,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    content_type: str = "application/json",
    head: bool = False,
) -> bytes:
    """A whole response; the connection ends after it. head: leave the body out, as HEAD asks."""
    lines = [
        f"HTTP/1.1 {status} {REASONS[status]}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if head else body)


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str] | None:
    """(method, path without query) of one request; None if none comes within 5 s, or it is not HTTP."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_S)
    except (asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        return None
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    return words[0], words[1].partition("?")[0]


async def status_of(host: str, port: int, path: str, *, timeout_s: float) -> int:
    """The status that a GET of `path` answers. Raises OSError (refused, reset), TimeoutError, or ValueError (not HTTP)."""

    async def get() -> int:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            line = await reader.readline()
        finally:
            writer.close()
        words = line.split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
            raise ValueError(f"not an HTTP status line: {line[:40]!r}")
        return int(words[1])

    try:
        return await asyncio.wait_for(get(), timeout_s)
    except asyncio.TimeoutError as exc:  # its own class until Python 3.11
        raise TimeoutError from exc
