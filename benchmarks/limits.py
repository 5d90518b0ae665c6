"""What the machine allows: the same bytes through the fewest instructions, no tool around them.

preadv             every file read into one buffer that is used again
dd                 every file read and written, fsync at the end of each
nginx, recv        every file by sendfile over one loopback connection into one buffer that is used again
nginx, recv+write  the same, written with pwrite, fsync at the end of each
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Command, Failed
from builder import process

_READ = """
import os, pathlib, sys
from concurrent.futures import ThreadPoolExecutor
def read(path):
    buffer, file, at = bytearray(1 << 20), os.open(path, os.O_RDONLY), 0
    while n := os.preadv(file, [buffer], at):
        at += n
    os.close(file)
with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(read, pathlib.Path(sys.argv[1]).iterdir()))
"""

_RECEIVE = """
import os, pathlib, socket, sys
from concurrent.futures import ThreadPoolExecutor
port, folder, target = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
def receive(path):
    buffer = memoryview(bytearray(1 << 20))
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.sendall(b"GET /%s HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" % path.name.encode())
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            head += wire.recv(1)
        left, at = path.stat().st_size, 0
        if b" 200 " not in head or b"Content-Length: %d\\r" % left not in head:
            raise SystemExit(head.decode())
        out = os.open(os.path.join(target, path.name), os.O_WRONLY | os.O_CREAT, 0o644) if target else None
        while left:
            n = wire.recv_into(buffer, min(left, len(buffer)), socket.MSG_WAITALL)
            if not n:
                raise SystemExit("nginx hung up")
            done = 0
            while out is not None and done < n:
                done += os.pwrite(out, buffer[done:n], at + done)
            left, at = left - n, at + n
with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(receive, folder.iterdir()))
"""

_COPY = """
printf '%s\\0' "$0"/* | xargs -0 -P "$(nproc)" -I{} sh -c 'dd if="$1" of="$2/${1##*/}" bs=1M status=none' dd {} "$1"
"""


@dataclass(frozen=True)
class Nginx:
    """A running nginx. pid: its only process."""

    port: int
    pid: int


def read(folder: Path) -> Command:
    return Command([sys.executable, "-c", _READ, str(folder)], os.environ)


def copy(folder: Path, target: Path) -> Command:
    return Command(["sh", "-c", _COPY, str(folder), str(target)], os.environ, target)


def receive(nginx: Nginx, folder: Path, target: Path | None = None) -> Command:
    """folder: what nginx serves. target: where to write it; without one the bytes are dropped."""
    argv = [sys.executable, "-c", _RECEIVE, str(nginx.port), str(folder), str(target or "")]
    return Command(argv, os.environ, target)


def nginx_program() -> str:
    """Its path, or empty where it is not installed."""
    return str(process.which("nginx") or next((p for p in (Path("/usr/sbin/nginx"),) if p.is_file()), ""))


@contextlib.contextmanager
def serve(folder: Path, state: Path) -> Iterator[Nginx]:
    """nginx over `folder` on a free port of 127.0.0.1: one process, sendfile, no log. state: its folder for the meantime."""
    state.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = " ".join(f"{kind}_temp_path {state}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (state / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {state}/pid; error_log {state}/error.log;\n"
        "events {}\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; {kept}\n"
        f"  server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    server = subprocess.Popen(
        [nginx_program(), "-p", str(state), "-c", str(state / "nginx.conf"), "-e", str(state / "error.log")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _answers(server, port, state)
        yield Nginx(port, server.pid)
    finally:
        server.terminate()
        server.wait(10)


def _answers(server: subprocess.Popen[bytes], port: int, state: Path) -> None:
    for _ in range(100):
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    log = state / "error.log"
    raise Failed(f"nginx did not start: {log.read_text()[-400:] if log.exists() else ''}")
