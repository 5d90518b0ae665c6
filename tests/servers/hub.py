"""A server that speaks the Hugging Face hub's HTTP API as the hub's own client uses it, with its CDN on a second port.

    with HubServer(folder) as hub:                       # folder: the model's files; "main" points to their commit
        snapshot(ModelRef("hf://org/model"), endpoint=hub.endpoint)

    /api/models/org/model[/revision/R]?blobs=true        names, sizes, blob ids, sha256 of files in large-file storage
    /api/models/org/model/tree/C                         the same as snapshot_download asks for it
    /org/model/resolve/R/PATH                            a file of git's; for a large one a redirect to the CDN
    <cdn>/<sha256>/PATH?Expires=..&Signature=..          bytes, for who has a signature that is still good

Strict: a request that the real ones would refuse is refused, and one that no client should send is kept in `strange`. The
plan of faults is that of `objects`: its keys are api/, hub/PATH and cdn/PATH.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.bounds import BOUND_S
from tests.servers.objects import Plan

REPO = "org/model"
LARGE = (".safetensors", ".gguf", ".bin", ".onnx", ".pt")  # what .gitattributes of a new repository has in large-file storage
FAULTS = (
    "error",  # 500
    "busy",  # 503 with Retry-After
    "throttle",  # 429 with RateLimit
    "hangup",  # closed before the status line
    "cut",  # closed in the middle of the body
    "short",  # half of the body under a Content-Length of half
    "long",  # one byte too many, announced
    "swap",  # the right length of other bytes
    "shift",  # a range other than the one asked for
    "whole",  # 200 with the whole file instead of 206
    "stall",  # half of the body, then silence
    "trickle",  # a byte now and then
    "silent",  # nothing at all
    "expired",  # 403, as for a signature that is over
    "moved",  # the answer names another commit
    "edited",  # another ETag, and another body of the same length
    "grown",  # Content-Range of a longer file
    "portal",  # 200 with a page to log in
    "bridge",  # 400, as for a file too large for the bridge
)
TRANSIENT = ("error", "busy", "throttle", "hangup", "cut", "short", "long", "shift", "whole", "expired")


@dataclass(frozen=True)
class Entry:
    """A file of a commit."""

    path: str
    location: Path

    @property
    def body(self) -> bytes:
        return self.location.read_bytes()

    @property
    def large(self) -> bool:
        return self.path.endswith(LARGE)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @property
    def git(self) -> bytes:
        """What git has: the file, or the pointer to it."""
        if not self.large:
            return self.body
        size = self.location.stat().st_size
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()

    @cached_property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.git) + self.git).hexdigest()


@dataclass(frozen=True)
class Request:
    """One request. where: api, hub or cdn.  range: its header.  token: what came as Authorization."""

    method: str
    where: str
    path: str
    range: str
    token: str


@dataclass
class Access:
    """Who may read: kind is open, private (nothing without the token) or gated (names without it, no file).

    token: the one that counts; of a gated model with none, every token is of someone who has not accepted its terms.
    """

    kind: str = "open"
    token: str = ""


class HubServer:
    """One repository. large files are redirected to the CDN; `cdn=False` serves them from the hub, as mirrors do."""

    def __init__(
        self,
        folder: Path,
        *,
        plan: Plan | None = None,
        access: Access | None = None,
        cdn: bool = True,
        stall_s: float = BOUND_S,
        retry_after_s: int = 0,
    ) -> None:
        self.plan: Plan = plan or (lambda key, asked: "")
        self.access = access or Access()
        self.cdn = cdn
        self.stall_s, self.retry_after_s = stall_s, retry_after_s
        self.commits: dict[str, dict[str, Entry]] = {}
        self.branches: dict[str, str] = {}
        self.requests: list[Request] = []
        self.strange: list[str] = []
        self.failed: Counter[str] = Counter()
        self.body_bytes = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.pause_s = 0.0  # before every body
        self._asked: Counter[str] = Counter()
        self._signatures: set[str] = set()
        self._servers = [_Server(self, _Hub), _Server(self, _Cdn)]
        self._threads = [threading.Thread(target=s.serve_forever, args=(0.02,), daemon=True) for s in self._servers]
        self.commit = self.publish(folder)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn_url(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def publish(self, folder: Path, branch: str = "main") -> str:
        """A commit of the folder's files, which `branch` then points to."""
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        entries = {e.path: e for e in (Entry(p.relative_to(folder).as_posix(), p) for p in paths)}
        tree = "".join(f"{e.blob_id} {e.path}\n" for e in entries.values())
        commit = hashlib.sha1(f"{len(self.commits)}\n{tree}".encode()).hexdigest()
        self.commits[commit] = entries
        self.branches[branch] = commit
        return commit

    def expire(self) -> None:
        """All signatures given so far are over."""
        with self.lock:
            self._signatures.clear()

    def sign(self) -> str:
        with self.lock:
            self._signatures.add(made := secrets.token_hex(16))
            return made

    def is_signed(self, signature: str) -> bool:
        with self.lock:
            return signature in self._signatures

    def count(self, where: str) -> int:
        return sum(r.where == where for r in self.requests)

    def __enter__(self) -> HubServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            server.hang_up()
            thread.join()

    def next_fault(self, key: str) -> str:
        with self.lock:
            asked = self._asked[key]
            self._asked[key] += 1
            fault = self.plan(key, asked)
            if fault:
                self.failed[fault] += 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: HubServer, handler: type[_Handler]) -> None:
        self.owner = owner
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not news."""


@dataclass
class _Answer:
    """A body, in part or whole, and what is said about it."""

    entry: Entry
    etag: str
    headers: dict[str, str] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = BOUND_S
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.owner = self.server.owner

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def note(self, where: str, path: str) -> None:
        token = self.headers.get("Authorization", "")
        with self.owner.lock:
            self.owner.requests.append(Request(self.command, where, path, self.headers.get("Range", ""), token))

    def strange(self, why: str) -> None:
        with self.owner.lock:
            self.owner.strange.append(f"{self.command} {self.path.partition('?')[0]}: {why}")

    def say(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, announced: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body) if announced is None else announced), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.owner.closing.wait(self.owner.pause_s)
            self.wfile.write(body)
            with self.owner.lock:
                self.owner.body_bytes += len(body)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def failed_at_once(self, fault: str) -> bool:
        """Faults that need no body."""
        if fault == "error":
            self.say(500)
        elif fault == "busy":
            self.say(503, headers={"Retry-After": str(self.owner.retry_after_s)})
        elif fault == "throttle":
            self.say(429, headers={"RateLimit": f'"resolvers";r=0;t={self.owner.retry_after_s}'})
        elif fault == "hangup":
            self.hang_up()
        elif fault == "portal":
            self.say(200, b"<html>log in</html>", {"Content-Type": "text/html"})
        elif fault == "bridge":
            self.say(400, b"Bad Request")
        elif fault == "silent":
            self.owner.closing.wait(self.owner.stall_s)
            self.hang_up()
        else:
            return False
        return True

    def send_file(self, answer: _Answer, fault: str) -> None:
        """200 or 206, whole or broken as the fault says."""
        body = answer.entry.body
        headers = {"ETag": f'"{answer.etag}"', "Accept-Ranges": "bytes", **answer.headers}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.headers.get("Range") and not match:
            self.strange(f"Range: {self.headers['Range']}")
        if self.headers.get("Accept-Encoding", "") != "identity" and match:
            self.strange("a range of what may be compressed on the way")
        if not match or fault == "whole":
            self.break_body(200, body, headers, fault)
            return
        start, end = int(match[1]), min(int(match[2]), len(body) - 1)
        if start >= len(body):
            self.say(416, headers={"Content-Range": f"bytes */{len(body)}"})
            return
        if fault == "shift":
            start, end = (start + 1, end + 1) if end + 1 < len(body) else (max(0, start - 1), max(0, end - 1))
        total = len(body) + (fault == "grown")
        self.break_body(206, body[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{total}"}, fault)

    def break_body(self, status: int, body: bytes, headers: dict[str, str], fault: str) -> None:
        half = body[: len(body) // 2]
        if fault == "edited":
            headers = headers | {"ETag": f'"{hashlib.sha1(body).hexdigest()[:32]}-edited"'}
        if fault in ("swap", "edited"):
            self.say(status, bytes(b ^ 0x55 for b in body), headers)
        elif fault == "short":
            self.say(status, half, headers)
        elif fault == "long":
            self.say(status, body + b"\0", headers)
        elif fault in ("cut", "stall", "trickle"):
            self.say(status, half, headers, announced=len(body))
            self.wfile.flush()
            if fault == "trickle":
                self.trickle(body[len(half) :])
            elif fault == "stall":
                self.owner.closing.wait(self.owner.stall_s)
            self.hang_up()
        else:
            self.say(status, body, headers)

    def trickle(self, rest: bytes) -> None:
        end = time.monotonic() + self.owner.stall_s
        for at in range(len(rest)):
            if time.monotonic() > end or self.owner.closing.is_set():
                break
            self.wfile.write(rest[at : at + 1])
            self.wfile.flush()
            self.owner.closing.wait(0.02)


class _Hub(_Handler):
    """huggingface.co."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        resolve = path.startswith(f"/{REPO}/resolve/")
        if path != "/api/agent-harnesses":
            self.note("hub" if resolve else "api", path)
        if "Authorization" in self.headers and not re.fullmatch(r"Bearer \S+", self.headers["Authorization"]):
            self.strange("Authorization without a token")
        if path == "/api/agent-harnesses":  # the client asks for it where a coding agent runs it
            self.say(404)
        elif not (resolve or path.startswith("/api/models/")):
            self.strange("not of the hub's API")
            self.say(404)
        elif not self.refused(path, resolve):
            self.file(path) if resolve else self.api(path, query)

    def refused(self, path: str, resolve: bool) -> bool:
        """Whether access was refused; then it is answered. As huggingface.co does."""
        access, given = self.owner.access, self.headers.get("Authorization", "").removeprefix("Bearer ")
        known = given == access.token if access.token else True
        if given and not known:
            self.error(401, "", "Invalid credentials in Authorization header")
        elif not resolve and not re.match(rf"/api/models/{REPO}(/|\Z)", path):
            self.error(404 if given else 401, "RepoNotFound", "Repository not found")
        elif access.kind == "private" and not given:
            self.error(401, "RepoNotFound", "Repository not found")
        elif access.kind == "gated" and resolve and not (given and access.token):
            self.error(403 if given else 401, "GatedRepo", f"Access to model {REPO} is restricted.")
        else:
            return False
        return True

    def error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"} | ({"X-Error-Code": code} if code else {})
        self.say(status, json.dumps({"error": message}).encode(), headers)

    def api(self, path: str, query: dict[str, list[str]]) -> None:
        fault = self.owner.next_fault("api/")
        if self.failed_at_once(fault):
            return
        kind, _, revision = path.removeprefix(f"/api/models/{REPO}").removeprefix("/").partition("/")
        commit = self.owner.branches.get(revision or "main", revision)
        if kind not in ("", "revision", "tree"):
            self.strange("not of the hub's API")
            self.say(404)
        elif commit not in self.owner.commits:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif kind == "tree":
            self.json([_tree(e) for e in self.owner.commits[commit].values()])
        else:
            siblings = [_sibling(e, query.get("blobs") == ["true"]) for e in self.owner.commits[commit].values()]
            gated = "auto" if self.owner.access.kind == "gated" else False
            about: dict[str, Any] = {"id": REPO, "modelId": REPO, "sha": "f" * 40 if fault == "moved" else commit}
            about |= {"private": self.owner.access.kind == "private", "gated": gated, "tags": [], "likes": 0}
            self.json({**about, "siblings": siblings})

    def json(self, value: Any) -> None:
        self.say(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def file(self, path: str) -> None:
        revision, _, name = path.removeprefix(f"/{REPO}/resolve/").partition("/")
        fault = self.owner.next_fault(f"hub/{name}")
        if self.failed_at_once(fault):
            return
        commit = self.owner.branches.get(revision, revision)
        entry = self.owner.commits.get(commit, {}).get(name)
        if commit not in self.owner.commits:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif entry is None:
            self.error(404, "EntryNotFound", "Entry not found")
        else:
            self.send(entry, "f" * 40 if fault == "moved" else commit, fault)

    def send(self, entry: Entry, commit: str, fault: str) -> None:
        headers = {"X-Repo-Commit": commit}
        if not entry.large:
            self.send_file(_Answer(entry, entry.blob_id, headers), fault)
            return
        linked = {**headers, "X-Linked-Size": str(entry.location.stat().st_size), "X-Linked-ETag": f'"{entry.sha256}"'}
        if not self.owner.cdn:
            self.send_file(_Answer(entry, entry.sha256, linked), fault)
            return
        query = f"Expires={int(time.time()) + 3600}&Signature={self.owner.sign()}"
        location = f"{self.owner.cdn_url}/{entry.sha256}/{quote(entry.path)}?{query}"
        self.say(302, b"Found. Redirecting", {**linked, "Location": location})


class _Cdn(_Handler):
    """What huggingface.co redirects to; knows signatures, no tokens."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        sha256, _, name = unquote(url.path).lstrip("/").partition("/")
        self.note("cdn", name)
        if "Authorization" in self.headers:
            self.strange("the hub's token came to the CDN")
            self.say(400)  # as S3: two ways to sign
            return
        fault = self.owner.next_fault(f"cdn/{name}")
        if self.failed_at_once(fault):
            return
        entries = (e.get(name) for e in self.owner.commits.values())
        entry = next((e for e in entries if e and e.sha256 == sha256), None)
        if fault == "expired" or not self.owner.is_signed(parse_qs(url.query).get("Signature", [""])[0]):
            self.say(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif entry is None:
            self.say(404)
        else:
            self.send_file(_Answer(entry, hashlib.md5(sha256.encode()).hexdigest()), fault)


def _sibling(entry: Entry, blobs: bool) -> dict[str, Any]:
    one: dict[str, Any] = {"rfilename": entry.path}
    if blobs:
        one |= {"size": entry.location.stat().st_size, "blobId": entry.blob_id}
        if entry.large:
            one["lfs"] = {"sha256": entry.sha256, "size": entry.location.stat().st_size, "pointerSize": len(entry.git)}
    return one


def _tree(entry: Entry) -> dict[str, Any]:
    one: dict[str, Any] = {"type": "file", "path": entry.path, "size": entry.location.stat().st_size, "oid": entry.blob_id}
    if entry.large:
        one["lfs"] = {"oid": entry.sha256, "size": entry.location.stat().st_size, "pointerSize": len(entry.git)}
    return one
