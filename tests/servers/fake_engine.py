"""A small OpenAI-compatible server with bad habits on request, to stand where an engine stands. Standard library.

It answers every chat request by the words of the question, reversed, one per event.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OPTIONS = argparse.ArgumentParser()
OPTIONS.add_argument("--host", default="127.0.0.1")
OPTIONS.add_argument("--port", type=int, required=True)
OPTIONS.add_argument("--start-s", type=float, default=0.0, help="before the port opens")
OPTIONS.add_argument("--unhealthy-while", type=Path, help="/health says 503 while this file exists")
OPTIONS.add_argument("--token-s", type=float, default=0.0, help="before each word")
OPTIONS.add_argument("--die-s", type=float, default=0.0, help="end by itself after so long")
OPTIONS.add_argument("--die-with", type=int, default=7, help="exit code of that; negative: a signal")
OPTIONS.add_argument("--die-at-request", type=int, default=0, help="end in the middle of this answer")
OPTIONS.add_argument("--term", choices=("exit", "ignore", "default"), default="exit")
OPTIONS.add_argument("--term-code", type=int, default=0)
OPTIONS.add_argument("--fork", type=Path, help="also start a process that sleeps, and write its id here")
OPTIONS.add_argument("--log", type=Path, help="one line per request that ends early: 'gone'")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    options: argparse.Namespace
    asked = 0
    lock = threading.Lock()

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        flag = self.options.unhealthy_while
        self._send(503 if self.path == "/health" and flag and flag.exists() else 200, {"path": self.path})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            Handler.asked += 1
            last = Handler.asked == self.options.die_at_request
        words = body["messages"][-1]["content"].split()[::-1][: body.get("max_tokens", 16)]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for i, word in enumerate(words):
                time.sleep(self.options.token_s)
                self._event({"choices": [{"index": 0, "delta": {"content": word if not i else f" {word}"}}]})
                if last:
                    os._exit(self.options.die_with)
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self._event({"choices": [], "usage": {"completion_tokens": len(words), "prompt_tokens": len(words)}})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:
            if self.options.log:
                with self.options.log.open("a") as log:
                    log.write("gone\n")
            self.close_connection = True

    def _event(self, value: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _chunk(self, body: bytes) -> None:
        self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
        self.wfile.flush()

    def _send(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def die(code: int) -> None:
    if code < 0:
        os.kill(os.getpid(), -code)
        time.sleep(5)  # the kernel may give it to another thread, a little later
    os._exit(code)


class Server(ThreadingHTTPServer):
    request_queue_size = 1024


def main() -> None:
    options = Handler.options = OPTIONS.parse_args()
    if options.term == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif options.term == "exit":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(options.term_code))
    if options.fork:
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ))
        options.fork.write_text(str(pid))
    if options.die_s:
        threading.Timer(options.die_s, die, [options.die_with]).start()
    time.sleep(options.start_s)
    Server((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
