"""A started server, seen from outside: the protocol both ways of starting one satisfy, and waiting until it is ready.

Plain http.client without proxies: the server is on this machine, and a proxy variable must not come between.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from builder.errors import BuilderError
from builder.format import phases as phase_format
from builder.format.phases import Phase
from builder.progress import Progress

POLL_S = 0.05  # 20 polls a second: the error of "ready", and under 1 % of a core on the machine being measured
NOTE_S = 0.5  # the progress note, and a look whether the process still lives
CALL_S = 5.0  # one call of the control port
LOG_LINES = 25


class Server(Protocol):
    """A server that was asked for.

    host: where its ports answer.  asked: epoch seconds.  notes: what a reader of its figures must know.
    gpu: whether it was given one.
    """

    host: str
    port: int
    control_port: int
    asked: float
    notes: list[str]
    gpu: bool

    def started(self) -> float:
        """When its process existed, seconds since the epoch."""

    def ended(self) -> str | None:
        """How it ended, in words, if it has; None while it runs."""

    def logs(self, lines: int) -> str:
        """The last lines it wrote, secrets hidden."""

    def look(self) -> dict[str, Any]:
        """What `inside.SCRIPT` saw in the server's own process space."""


@dataclass(frozen=True)
class Readiness:
    """How /ready came to say yes. at: epoch seconds of the first yes.  denied: answers that said no before it.

    refused: polls before it that nothing answered.
    """

    at: float
    denied: int
    refused: int


def base_url(server: Server) -> str:
    return f"http://{server.host}:{server.port}"


def wait_ready(
    server: Server,
    *,
    timeout_s: float,
    progress: Progress,
    title: str,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Readiness:
    """When and how the server became ready.

    Raises BuilderError, with the log's tail, as soon as the server ends, or after timeout_s.
    """
    task = progress.add(title, unit="")
    denied = refused = 0
    looked = server.asked
    try:
        while True:
            status = ready_status(server)
            now = clock()
            if status == 200:
                return Readiness(now, denied, refused)
            denied, refused = denied + (status is not None), refused + (status is None)
            if now - looked >= NOTE_S:
                looked = now
                progress.note(task, _note(server, status, now))
                _give_up(server, now, timeout_s)
            sleep(POLL_S)
    finally:
        progress.done(task)


def ready_status(server: Server) -> int | None:
    """HTTP status of /ready; None when nothing answers."""
    found = _get(server, "/ready")
    return found[0] if found else None


def phases(server: Server) -> list[Phase]:
    """What the runtime has recorded so far; empty when it does not answer."""
    found = _get(server, "/phases")
    if not found or found[0] != 200:
        return []
    try:
        raw = json.loads(found[1])
    except ValueError:
        return []
    return phase_format.parse_lines(json.dumps(r) for r in raw) if isinstance(raw, list) else []


def metrics(server: Server) -> str:
    """The text of /metrics; "" when it does not answer with one."""
    found = _get(server, "/metrics")
    return found[1].decode(errors="replace") if found and found[0] == 200 else ""


def _give_up(server: Server, now: float, timeout_s: float) -> None:
    ended = server.ended()
    if ended is not None:
        raise BuilderError(
            f"the server ended before it was ready: {ended}{_tail(server)}",
            hint="its last lines say why; builder doctor checks this machine",
        )
    if now - server.asked > timeout_s:
        at = _note(server, ready_status(server), now)
        raise BuilderError(
            f"not ready after {timeout_s:.0f} s ({at}){_tail(server)}",
            hint="a longer --timeout, if the last phase was still moving",
        )


def _tail(server: Server) -> str:
    text = server.logs(LOG_LINES).strip()
    return "".join(f"\n  | {line}" for line in text.splitlines()) if text else "\n  (it wrote nothing)"


def _note(server: Server, status: int | None, now: float) -> str:
    """What the server is in, in a few words: the phase after the last one it finished."""
    if status is None:
        return f"{now - server.asked:.0f} s: starting, no answer at {server.host}:{server.control_port} yet"
    done = phases(server)
    if not done:
        return f"{now - server.asked:.0f} s: runtime is up"
    last = max(done, key=lambda p: p.end)
    return f"{now - server.asked:.0f} s: {last.phase} done"


def _get(server: Server, path: str) -> tuple[int, bytes] | None:
    connection = http.client.HTTPConnection(server.host, server.control_port, timeout=CALL_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
