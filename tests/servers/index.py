"""A package index over TLS with a private authority and a login, in a network namespace if need be, and with faults.

    https://127.0.0.1:PORT/simple/NAME/     PEP 503, or PEP 691 where the client asks for it
    https://127.0.0.1:PORT/files/NAME.whl   the wheels
    https://127.0.0.1:PORT/apt/             a flat Debian repository of what lies in `debs`

Every answer needs the login. `faults` maps a distribution's name, or "apt", to what goes wrong with its file.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import datetime
import gzip
import hashlib
import html
import ipaddress
import json
import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.bounds import BOUND_S

CLONE_NEWNET = 0x40000000
JSON = "application/vnd.pypi.simple.v1+json"


@dataclass(frozen=True)
class Certificates:
    """An authority of one's own and a certificate of 127.0.0.1 signed by it. ca: PEM. chain: PEM, with its private key."""

    name: str
    ca: Path
    chain: Path


def certify(folder: Path, name: str, *, host: str = "127.0.0.1") -> Certificates:
    """Make both, valid for a day. name: the authority's common name."""
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def build(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        made = made.not_valid_before(now - day).not_valid_after(now + day)
        return made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)

    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    root = build(issuer, root_key.public_key()).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    root = root.add_extension(usage, critical=True)
    root = root.add_extension(x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), critical=False)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    leaf = build(x509.Name([]), key.public_key()).add_extension(names, critical=True)
    pem = serialization.Encoding.PEM
    ca, chain = folder / "ca.pem", folder / "server.pem"
    ca.write_bytes(root.sign(root_key, hashes.SHA256()).public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain.write_bytes(secret + leaf.sign(root_key, hashes.SHA256()).public_bytes(pem))
    return Certificates(name, ca, chain)


def within(namespace: Path, call: Any) -> Any:
    """`call()` in a thread that has entered the network namespace; sockets made there stay there."""

    def enter() -> Any:
        handle = os.open(namespace, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(handle)
        return call()

    with ThreadPoolExecutor(1) as pool:  # the thread ends with the pool, so no other work gets into the namespace
        return pool.submit(enter).result()


@dataclass(frozen=True)
class Request:
    path: str
    user: str
    status: int


@dataclass
class Login:
    user: str
    password: str

    @property
    def header(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass
class Index:
    """One server. faults: wrong (other bytes), error (500), forbidden (403), short (half the file), hang."""

    wheels: Path
    certificates: Certificates
    login: Login
    debs: Path | None = None
    namespace: Path | None = None
    faults: Mapping[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        def listen() -> socket.socket:
            return socket.create_server(("127.0.0.1", 0), backlog=64)

        listening = within(self.namespace, listen) if self.namespace else listen()
        self._server = _Server(self, listening)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def root(self) -> str:
        return f"https://127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"{self.root}/simple"

    def paths(self, status: int = 200) -> list[str]:
        return [one.path for one in self.requests if one.status == status]

    def __enter__(self) -> Index:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, owner: Index, listening: socket.socket) -> None:
        super().__init__(listening.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.owner = listening, owner
        self.server_port = listening.getsockname()[1]
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(owner.certificates.chain)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.context.wrap_socket(request, server_side=True) as secure:  # here, in the connection's own thread
            self.RequestHandlerClass(secure, client_address, self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not know the authority goes away; it is not news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = BOUND_S
    server: _Server

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        owner, given = self.server.owner, self.headers.get("Authorization", "")
        if given != owner.login.header:
            self.say(401, b"", {"WWW-Authenticate": 'Basic realm="closed"'})
            return
        kind, _, name = self.path.strip("/").partition("/")
        name = unquote(name.removeprefix("./"))  # as apt asks for a flat repository
        folder = {"files": owner.wheels, "apt": owner.debs}.get(kind)
        if kind == "simple":
            self.page(re.sub(r"[-_.]+", "-", name).lower())
        elif kind == "apt" and name in ("Packages", "Packages.gz") and folder:
            self.say(200, gzip.compress(packages(folder)) if name.endswith("gz") else packages(folder))
        elif folder and "/" not in name and (folder / name).is_file():
            self.file(folder / name, owner.faults.get("apt" if kind == "apt" else _name(name), ""))
        else:
            self.say(404)

    do_HEAD = do_GET

    def page(self, name: str) -> None:
        if fault := self.server.owner.faults.get(f"page {name}", ""):
            self.fail(fault)
            return
        files = sorted(one for one in self.server.owner.wheels.glob("*.whl") if _name(one.name) == name)
        if not files:
            self.say(404)
            return
        digests = {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in files}
        if JSON in self.headers.get("Accept", ""):
            rows = [{"filename": f, "url": f"/files/{f}", "hashes": {"sha256": d}} for f, d in digests.items()]
            body = json.dumps({"meta": {"api-version": "1.0"}, "name": name, "files": rows})
            self.say(200, body.encode(), {"Content-Type": JSON})
        else:
            links = "".join(f'<a href="/files/{html.escape(f)}#sha256={d}">{html.escape(f)}</a>\n' for f, d in digests.items())
            self.say(200, f"<!DOCTYPE html><body>{links}</body>".encode(), {"Content-Type": "text/html"})

    def file(self, path: Path, fault: str) -> None:
        body = path.read_bytes()
        if fault == "wrong":
            self.say(200, bytes([body[0] ^ 1]) + body[1:])
        elif fault == "short":
            self.say(200, body[: len(body) // 2], announced=len(body))
        elif fault:
            self.fail(fault)
        else:
            self.say(200, body)

    def fail(self, fault: str) -> None:
        if fault == "hang":
            self.server.owner.closing.wait(600)
            self.close_connection = True
        else:
            self.say({"error": 500, "forbidden": 403}[fault])

    def say(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, announced: int = 0) -> None:
        user = base64.b64decode(self.headers.get("Authorization", "")[6:]).decode().partition(":")[0]
        self.server.owner.requests.append(Request(self.path, user, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(announced or len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)
        self.close_connection = self.close_connection or bool(announced)


def _name(filename: str) -> str:
    return re.sub(r"[-_.]+", "-", filename.split("-")[0]).lower()


def packages(folder: Path) -> bytes:
    """The Packages file of a flat repository."""
    parts = []
    for deb in sorted(folder.glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "-f", deb], capture_output=True, check=True).stdout.decode().strip()
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        parts.append(f"{control}\nFilename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
    return "\n".join(parts).encode()


class Proxy:
    """A proxy for CONNECT alone, which wants a login. hosts: what it was asked to connect to, with the login or without."""

    def __init__(self, login: Login, namespace: Path | None = None) -> None:
        def listen() -> socket.socket:
            return socket.create_server(("127.0.0.1", 0), backlog=64)

        self.login, self.namespace = login, namespace
        self.hosts: list[tuple[str, bool]] = []
        self._listening = within(namespace, listen) if namespace else listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        user, password = quote(self.login.user, safe=""), quote(self.login.password, safe="")
        return f"http://{user}:{password}@127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                threading.Thread(target=self._serve, args=(self._listening.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1) or _end()
            match = re.match(rb"CONNECT ([^ ]+):(\d+) ", head)
            known = f"proxy-authorization: {self.login.header}".lower().encode() in head.lower()
            self.hosts.append((match[1].decode() if match else "", known))
            if not match or not known:
                client.sendall(
                    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
                )
                return
            host, port = match[1].decode(), int(match[2])

            def connect() -> socket.socket:
                return socket.create_connection((host, port), timeout=BOUND_S)

            with within(self.namespace, connect) if self.namespace else connect() as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join()


def _end() -> bytes:
    raise ValueError("the client hung up")


def _pump(source: socket.socket, target: socket.socket) -> None:
    source.settimeout(BOUND_S)
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
