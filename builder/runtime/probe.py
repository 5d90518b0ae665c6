"""`probe live|ready`: an exec probe. Exit 0 if the control port says 200, else 1 with the reason on stderr.

Imports nothing but sockets: an exec probe costs a Python start each time (see benchmarks), so a raw request it is.
"""

from __future__ import annotations

import socket
import sys

TIMEOUT_S = 4.0
USAGE = "usage: python -m builder.runtime probe [-h] {live,ready}\n"


def main(argv: list[str]) -> int:
    from builder.runtime.settings import control_port

    what = argv[1] if len(argv) == 2 else ""
    if what in ("-h", "--help"):
        sys.stdout.write(USAGE + "\nAsk the control port (BUILDER_CONTROL_PORT). Exit 0: yes; 1: no, or no answer.\n")
        return 0
    if what not in ("live", "ready"):
        sys.stderr.write(USAGE)
        return 2
    port = control_port()
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as sock:
            sock.sendall(f"GET /{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while part := sock.recv(65536):
                answer += part
    except OSError as exc:
        sys.stderr.write(f"{what}: control port {port}: {exc}\n")
        return 1
    if answer.startswith(b"HTTP/1.1 200"):
        return 0
    body = answer.rpartition(b"\r\n\r\n")[2].decode("utf-8", "replace").strip()
    sys.stderr.write(f"{what}: {body or 'no answer'}\n")
    return 1
