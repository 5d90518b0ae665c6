"""Sizes of wheels by asking servers: with a login for the index alone, past proxies where told, and never a guess."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from builder.errors import RemoteError
from builder.image.sizes import Found, Web


class Server(ThreadingHTTPServer):
    """answers: path to status, headers. seen: method, path and authorization of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, dict[str, str]]] = {}
        self.seen: list[tuple[str, str, str]] = []

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization", "")))
        status, headers = self.server.answers.get(self.path, (404, {}))
        if self.command == "GET" and status == 501:
            status, headers = 200, {"Content-Length": "7"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    do_GET = do_HEAD


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    both = Server(), Server()
    for one in both:
        threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True).start()
    yield both
    for one in both:
        one.shutdown()
        one.server_close()


@pytest.fixture
def login(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login robot password hunter2\n")
    return {"NETRC": str(tmp_path / "netrc")}


def wheel(url: str) -> Found:
    return Found("a", "1", "0" * 64, url)


def test_the_index_gets_the_login_and_where_it_redirects_gets_none(
    servers: tuple[Server, Server], login: dict[str, str]
) -> None:
    index, store = servers
    index.answers["/a.whl"] = (302, {"Location": store.url("/blob", host="localhost")})
    store.answers["/blob"] = (200, {"Content-Length": "12345"})
    assert Web(login).size(wheel(index.url("/a.whl"))) == 12345
    assert index.seen[0][2].startswith("Basic ")
    assert [authorization for _, _, authorization in store.seen] == [""]


def test_a_server_without_head_is_asked_by_get(servers: tuple[Server, Server]) -> None:
    servers[0].answers["/a.whl"] = (501, {})
    assert Web({}).size(wheel(servers[0].url("/a.whl"))) == 7
    assert [method for method, _, _ in servers[0].seen] == ["HEAD", "GET"]


def test_a_size_that_is_not_told_is_an_error_and_not_nothing(servers: tuple[Server, Server]) -> None:
    with pytest.raises(RemoteError, match=r"a==1: 127\.0\.0\.1 does not tell the wheel's size: 404"):
        Web({}).size(wheel(servers[0].url("/absent.whl")))
    with pytest.raises(RemoteError, match="does not tell the wheel's size"):
        Web({}).size(wheel("http://127.0.0.1:9/a.whl"))


def test_a_proxy_is_used_but_not_for_what_no_proxy_names(servers: tuple[Server, Server]) -> None:
    index, proxy = servers
    index.answers["/a.whl"] = (200, {"Content-Length": "5"})
    proxy.answers[index.url("/a.whl")] = (200, {"Content-Length": "6"})
    environ = {"HTTP_PROXY": proxy.url("")}
    assert Web(environ).size(wheel(index.url("/a.whl"))) == 6
    assert Web(environ | {"no_proxy": "127.0.0.1"}).size(wheel(index.url("/a.whl"))) == 5
