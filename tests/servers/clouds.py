"""Servers that speak the other clouds' protocols on this machine, over a folder that holds a store.

gs      rclone's S3 front end, asked anonymously: Google's XML API is the same for GET, HEAD and list-type=2
az      Azurite, Microsoft's emulator of Blob Storage, which checks every signature
http    the standard library's file server
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from builder import process
from builder.errors import CapabilityError
from builder.stores import rclone
from tests.bounds import BOUND_S

BUCKET = "models"
AZURITE = Path(sys.prefix) / "azurite/node_modules/azurite/dist/src/blob/main.js"
# Well known, and the same in every Azurite: its documentation prints it.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Cloud:
    """url: of the store.  endpoint_url: of the server, "" where the URL says it.  env: what a client needs."""

    url: str
    endpoint_url: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        return ["--store", self.url, *(["--endpoint-url", self.endpoint_url] if self.endpoint_url else [])]

    def through(self, endpoint_url: str) -> Cloud:
        """The same store behind a proxy."""
        if not self.endpoint_url:
            return Cloud(f"{endpoint_url}/", "", self.env)
        path = "/" + ACCOUNT if self.url.startswith("az://") else ""
        return Cloud(self.url, endpoint_url + path, self.env)

    @property
    def server(self) -> str:
        """scheme://host:port."""
        return "/".join((self.endpoint_url or self.url).split("/")[:3])


@contextlib.contextmanager
def serve(kind: str, store: Path) -> Iterator[Cloud]:
    """What lies in the folder `store` now, as a store of that kind. Raises CapabilityError where there is no such server."""
    with {"gs": _gs, "az": _az, "http": _http}[kind](store) as cloud:
        yield cloud


@contextlib.contextmanager
def _gs(store: Path) -> Iterator[Cloud]:
    with (
        tempfile.TemporaryDirectory() as root,
        _listening(
            lambda port: [str(rclone.program()), "serve", "s3", root, "--addr", f"127.0.0.1:{port}", "--no-checksum"]
        ) as port,
    ):
        shutil.copytree(store, Path(root) / BUCKET)
        time.sleep(0.1)  # rclone sees new folders after 50 ms
        yield Cloud(f"gs://{BUCKET}", f"http://127.0.0.1:{port}")


@contextlib.contextmanager
def _az(store: Path) -> Iterator[Cloud]:
    from azure.storage.blob import BlobServiceClient

    node = process.which("node")
    if node is None or not AZURITE.is_file():
        raise CapabilityError("no Azurite; run scripts/test-servers")
    with (
        tempfile.TemporaryDirectory() as root,
        _listening(
            lambda port: [
                *(str(node), str(AZURITE), "--blobPort", str(port), "--location", root),
                *("--silent", "--skipApiVersionCheck", "--disableTelemetry"),
            ]
        ) as port,
    ):
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        with BlobServiceClient(endpoint, credential=KEY) as service, service.create_container(BUCKET) as container:
            for path in (p for p in store.rglob("*") if p.is_file()):
                container.upload_blob(path.relative_to(store).as_posix(), path.read_bytes())
        yield Cloud(f"az://{BUCKET}", endpoint, {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY})


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def _http(store: Path) -> Iterator[Cloud]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(store)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Cloud(f"http://127.0.0.1:{server.server_port}/")
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def _listening(argv: object, wait_s: float = BOUND_S) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = subprocess.Popen(argv(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # type: ignore[operator]
    try:
        end = time.monotonic() + wait_s
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            assert child.poll() is None, f"ended with {child.returncode}"
            assert time.monotonic() < end, "it does not listen"
            time.sleep(0.05)
        yield port
    finally:
        child.kill()
        child.wait()
