"""The hub client against a server that speaks the hub's protocol, with one small repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from builder.engines.local import LocalEngine
from builder.errors import ConfigError, IntegrityError, RemoteError
from builder.models import hub
from builder.models.source import ModelRef
from builder.stores.directory import DirectoryStore
from builder.weights import push, split

COMMIT = "c0ffee" * 6 + "c0ff"
FILES = {"config.json": b"{}", "model.bin": b"weights" * 1000, "notes/readme.md": b"# hi"}


class Hub(BaseHTTPRequestHandler):
    """/api/models/org/model[/revision/R | /tree/COMMIT] and /org/model/resolve/COMMIT/FILE; model.bin is an LFS file."""

    status = 200
    body = FILES["model.bin"]
    seen: list[tuple[str, str]] = []  # noqa: RUF012  # reset by the fixture

    def _answer(self, send_body: bool) -> None:
        type(self).seen.append((self.path, self.headers.get("Authorization", "")))
        if self.status != 200:
            self._send(self.status, b"", {"X-Error-Message": "no"}, send_body)
        elif self.path.startswith(f"/api/models/org/model/tree/{COMMIT}"):
            self._send(200, json.dumps(self._tree()).encode(), {"Content-Type": "application/json"}, send_body)
        elif self.path.startswith("/api/models/org/model"):
            revision = self.path.partition("?")[0].partition("/revision/")[2]
            if revision not in ("", "main", "v1"):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, send_body)
                return
            self._send(200, json.dumps(self._info()).encode(), {"Content-Type": "application/json"}, send_body)
        elif self.path.startswith(f"/org/model/resolve/{COMMIT}/"):
            name = self.path.partition(COMMIT + "/")[2]
            body = self.body if name == "model.bin" else FILES[name]
            digest = hashlib.sha256(body).hexdigest()
            self._send(200, body, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}, send_body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, send_body)

    def _info(self) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = []
        for name, body in FILES.items():
            one: dict[str, Any] = {"rfilename": name, "size": len(body), "blobId": "0" * 40}
            if name == "model.bin":
                one["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
            siblings.append(one)
        return {"id": "org/model", "modelId": "org/model", "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0,
                "private": False, "likes": 0}  # fmt: skip

    def _tree(self) -> list[dict[str, Any]]:
        tree: list[dict[str, Any]] = [{"type": "directory", "path": "notes", "oid": "0" * 40, "size": 0}]
        for name, body in FILES.items():
            one: dict[str, Any] = {"type": "file", "path": name, "size": len(body), "oid": "0" * 40}
            if name == "model.bin":
                one["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
            tree.append(one)
        return tree

    def _send(self, status: int, body: bytes, headers: dict[str, str], send_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def log_message(self, *args: object) -> None:
        """Silent."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(Hub, "status", 200)
    monkeypatch.setattr(Hub, "body", FILES["model.bin"])
    monkeypatch.setattr(Hub, "seen", [])
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


REF = ModelRef("hf://org/model")


def test_a_branch_is_pinned_to_its_commit(server: str, tmp_path: Path) -> None:
    snapshot = hub.snapshot(REF, endpoint=server, cache=tmp_path)
    assert (snapshot.source, snapshot.revision) == ("hf://org/model", COMMIT)
    assert {f.path: f.location.read_bytes() for f in snapshot.files} == FILES
    assert [f.path for f in snapshot.files if f.sha256] == ["model.bin"]


def test_only_the_chosen_files_are_downloaded(server: str, tmp_path: Path) -> None:
    ref = ModelRef("hf://org/model@v1", include=("*.json", "*.md"), exclude=("notes/",))
    assert [f.path for f in hub.snapshot(ref, endpoint=server, cache=tmp_path).files] == ["config.json"]
    assert not any("model.bin" in path for path, _ in Hub.seen)
    with pytest.raises(ConfigError, match="no file to take"):
        hub.snapshot(ModelRef("hf://org/model", include=("*.gguf",)), endpoint=server, cache=tmp_path)


def test_the_token_is_sent(server: str, tmp_path: Path) -> None:
    hub.snapshot(REF, token="hf_x", endpoint=server, cache=tmp_path)
    assert {auth for _, auth in Hub.seen} == {"Bearer hf_x"}


def test_a_file_that_is_not_what_the_hub_recorded_is_refused(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "body", b"WEIGHTS" * 1000)
    snapshot = hub.snapshot(REF, endpoint=server, cache=tmp_path / "cache")
    store = DirectoryStore(tmp_path / "store")
    with pytest.raises(IntegrityError, match=r"model\.bin: sha256 .*, but its origin says"):
        push.push(split.plan(snapshot), store, LocalEngine(2), name="m")
    assert list(store.keys("refs/")) == list(store.keys("manifests/")) == []


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        (ModelRef("hf://org/nothing"), "not found, or private"),
        (ModelRef("hf://org/model", revision="v9"), "no revision 'v9'"),
        (ModelRef("hf://org/model@v8"), "no revision 'v8'"),
    ],
)
def test_what_the_hub_does_not_have(server: str, tmp_path: Path, ref: ModelRef, words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        hub.snapshot(ref, endpoint=server, cache=tmp_path)


@pytest.mark.parametrize(("status", "words"), [(401, "or private"), (403, "or private"), (418, "answered 418")])
def test_refusals(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, words: str) -> None:
    monkeypatch.setattr(Hub, "status", status)
    with pytest.raises(RemoteError, match=words):
        hub.snapshot(REF, endpoint=server, cache=tmp_path)


def test_an_unreachable_hub(server: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="cannot be reached"):
        hub.snapshot(REF, endpoint="http://127.0.0.1:9", cache=tmp_path)


@pytest.mark.parametrize("source", ["hf://model", "hf://a/b/c", "hf:///x", "hf://a/"])
def test_names_that_are_none(source: str) -> None:
    with pytest.raises(ConfigError, match="expected hf://organisation/model"):
        hub.parse(source)
