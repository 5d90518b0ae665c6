from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from builder.errors import ConfigError, RemoteError
from builder.runtime.drive import Percentiles, ask, nearest_rank, prompts, run_level

Answering = Callable[[Any], None]
DONE = b'data: {"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 3}}\n\ndata: [DONE]\n\n'


@pytest.fixture
def server() -> Iterator[Callable[[Answering], str]]:
    """`server(answering)` -> base URL of a real server that answers each POST with `answering(handler)`."""
    running: list[ThreadingHTTPServer] = []

    def start(answering: Answering) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                answering(self)

            def log_message(self, *_: Any) -> None: ...

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


def events(*parts: bytes, gap_s: float = 0.0) -> Answering:
    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for part in parts:
            handler.wfile.write(part)
            time.sleep(gap_s)

    return answer


def piece(text: str) -> bytes:
    return b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % text.encode()


def test_an_answer_is_put_together(server: Callable[[Answering], str]) -> None:
    url = server(events(b": comment\n\n", piece(""), piece("Par"), piece("is"), DONE, gap_s=0.02))
    answer = ask(url + "/v1/", "m", "?")
    assert (answer.text, answer.tokens, answer.prompt_tokens) == ("Paris", 7, 3)
    assert 0.04 <= answer.ttft_s < answer.total_s
    assert answer.tpot_s == pytest.approx((answer.total_s - answer.ttft_s) / 6)


def test_pieces_count_where_the_server_does_not(server: Callable[[Answering], str]) -> None:
    assert ask(server(events(piece("a"), piece("b"), b"data: [DONE]\n\n")), "m", "?").tokens == 2


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([piece("a")], "broke off after 1 pieces"),
        ([], "broke off after 0 pieces"),
        ([b"data: {not json\n\n"], "not a chat completion chunk"),
        ([b"data: [1]\n\n"], "not a chat completion chunk"),
        ([b'data: {"choices": [{"delta": 3}]}\n\n'], "not a chat completion chunk"),
        ([piece("a"), b'data: {"error": {"message": "out of memory"}}\n\n'], "the stream reports out of memory"),
        ([piece("a"), b'error: {"code": 500, "message": "slot gone"}\n\n'], "the stream reports slot gone"),
    ],
)
def test_a_stream_that_goes_wrong_is_an_error(server: Callable[[Answering], str], parts: list[bytes], said: str) -> None:
    with pytest.raises(RemoteError, match=said):
        ask(server(events(*parts)), "m", "?")


def test_a_status_is_reported_with_the_servers_words(server: Callable[[Answering], str]) -> None:
    def refuse(handler: Any) -> None:
        handler.send_response(503)
        handler.end_headers()
        handler.wfile.write(b'{"error": {"message": "not ready: weights"}}')

    with pytest.raises(RemoteError, match="HTTP 503 not ready: weights"):
        ask(server(refuse), "m", "?")


def test_a_server_that_drips_ends_at_the_deadline(server: Callable[[Answering], str]) -> None:
    """Each byte comes well within a socket timeout; the deadline is for the whole answer."""
    url = server(events(*([b": still here\n\n"] * 400), gap_s=0.05))
    began = time.monotonic()
    with pytest.raises(RemoteError, match="no complete answer within"):
        ask(url, "m", "?", timeout_s=0.3)
    assert time.monotonic() - began < 15


def test_no_server_is_a_remote_error_and_no_address_a_config_error() -> None:
    with pytest.raises(RemoteError, match="ConnectionRefusedError"):
        ask("http://127.0.0.1:9", "m", "?", timeout_s=2)
    for address in ("localhost:8000", "ftp://host", "http://"):
        with pytest.raises(ConfigError):
            run_level(address, "m", concurrency=1, requests=1)


def test_a_level_counts_errors_and_never_exceeds_its_concurrency(server: Callable[[Answering], str]) -> None:
    lock, now, most, seen = threading.Lock(), 0, 0, 0

    def answer(handler: Any) -> None:
        nonlocal now, most, seen
        with lock:
            now, seen = now + 1, seen + 1
            most, odd = max(most, now), seen % 3 == 0
        time.sleep(0.02)
        with lock:
            now -= 1
        events(piece("a"), *([] if odd else [DONE]))(handler)

    report = run_level(server(answer), "m", concurrency=3, requests=9)
    assert most == 3
    assert (report.requests, report.errors, report.tokens) == (9, 3, 6 * 7)
    assert len(report.error_samples) == 1
    assert "broke off" in report.error_samples[0]
    assert report.to_json()["tokens_per_s"] == pytest.approx(42 / report.seconds, rel=0.01)
    assert 0.02 <= report.ttft.p50 <= report.total.p99


def test_percentiles_are_samples() -> None:
    assert Percentiles.of([4, 1, 3, 2]) == Percentiles(2, 4, 4)
    assert Percentiles.of(range(1, 101)) == Percentiles(50, 95, 99)
    assert Percentiles.of([]) == Percentiles()
    assert nearest_rank([1, 2], 50) == 1


def test_prompts_repeat_for_a_seed_and_differ_otherwise() -> None:
    assert prompts(3, 8, seed=1) == prompts(3, 8, seed=1)
    assert len({*prompts(20, 8, seed=1), *prompts(20, 8, seed=2)}) == 40
    assert [len(p.split()) for p in prompts(2, 8)] == [8, 8]
