"""The load test without Docker: start `serve` as a child, and check from outside what the image claims.

    answers       the question gets a non-empty answer, the same one twice (greedy decoding), with the text asked for;
                  a server of tensors is asked with inputs made from the question, and its answer is its outputs' digests
    lazy          the engine process's own environment has CUDA_MODULE_LOADING, with the value that was set here
    load          every level is served: at least one answer, and no error
    ends          SIGTERM ends it within its grace period

Prints one JSON object; exit 7 if a claim fails, the server's own code if it never becomes ready.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, ConfigError
from builder.format.phases import parse_lines, unaccounted
from builder.runtime.drive import LevelReport, asking, run_level
from builder.runtime.engines import ENGINES
from builder.runtime.record import log
from builder.runtime.settings import Settings

POLL_S = 0.05
CLAIM_EXIT = 7
LAZY = "CUDA_MODULE_LOADING"


def main(args: argparse.Namespace, settings: Settings) -> int:
    levels = [_whole("--concurrency", args.concurrency, level) for level in args.concurrency.split(",")]
    requests = _whole("--requests", args.requests, args.requests)
    with tempfile.TemporaryFile("w+") as out:
        started = time.time()
        server = subprocess.Popen([sys.executable, "-m", "builder.runtime", "serve"], stdout=out, stdin=subprocess.DEVNULL)
        try:
            status = _until_ready(server, settings, args.timeout)
            ready = time.time()
            result = _claims(args, settings, status, [(level, max(level, requests)) for level in levels])
        finally:
            ended = _stop(server, settings.grace_s)
        out.seek(0)
        phases = parse_lines(out)
    result["phases"] = [
        {"phase": p.phase, "start": p.start, "end": p.end, "seconds": round(p.seconds, 6), "detail": p.detail} for p in phases
    ]
    result["ready_s"] = round(ready - started, 6)
    result["unaccounted_s"] = round(unaccounted(phases, started, ready), 6)
    result["exit_code"] = ended
    if ended is None:
        result["failures"].append(f"SIGTERM: still running after {settings.grace_s:g} s and 5 more")
    result["ok"] = not result["failures"]
    sys.stdout.write(json.dumps(result) + "\n")
    for failure in result["failures"]:
        log("selftest", failure)
    return CLAIM_EXIT if result["failures"] else 0


def _whole(option: str, given: str, text: str) -> int:
    """`text`, a part of what was `given`, as a number of at least 1. Raises ConfigError."""
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text)):
        raise ConfigError(
            f"{option} {given}: expected a whole number from 1 to 999999, found {text!r}", hint=f"correct {option}"
        )
    return int(text)


def _claims(
    args: argparse.Namespace, settings: Settings, status: dict[str, Any], levels: list[tuple[int, int]]
) -> dict[str, Any]:
    """Everything that needs the running server. levels: (concurrency, requests).

    failures: one line per claim that does not hold.
    """
    url, model = f"http://127.0.0.1:{settings.port}", status["model"]
    failures, asker = [], asking(ENGINES[settings.engine].protocol)
    first, second = (asker(url, model, args.prompt, max_tokens=args.max_tokens, timeout_s=args.timeout) for _ in range(2))
    if not first.text.strip():
        failures.append("answer: it is empty")
    if first.text != second.text:
        failures.append(f"answer: asked twice, got {first.text[:80]!r} and {second.text[:80]!r}")
    if args.contains.lower() not in first.text.lower():
        failures.append(f"answer: {args.contains!r} is not in {first.text[:200]!r}")
    lazy = _environment(status["engine_pid"]).get(LAZY)
    if lazy != settings.reported.get(LAZY):
        failures.append(f"{LAZY}: the engine has {lazy!r}, the image sets {settings.reported.get(LAZY)!r}")
    if lazy != "LAZY":
        failures.append(f"{LAZY}: the engine has {lazy!r}, expected 'LAZY'")
    load = [run_level(url, model, concurrency=at_once, requests=requests, asker=asker) for at_once, requests in levels]
    failures += [said for report in load if (said := load_failure(report))]
    return {
        "model": model,
        "digest": status["digest"],
        "engine": status["engine"],
        "answer": {"prompt": args.prompt, **first.to_json(), "repeated": first.text == second.text},
        "load": [report.to_json() for report in load],
        "environment": {"pid": status["engine_pid"], LAZY: lazy},
        "failures": failures,
    }


def load_failure(report: LevelReport) -> str:
    """Why the claim does not hold for this level, or "". A level that asked nothing proves nothing."""
    if report.errors:
        return f"load {report.concurrency}: {report.errors} of {report.requests} requests failed: {report.error_samples[0]}"
    return "" if report.requests > 0 else f"load {report.concurrency}: no request was completed"


def _until_ready(server: subprocess.Popen[bytes], settings: Settings, timeout_s: float) -> dict[str, Any]:
    """What /ready says once it says 200. Raises BuilderError if it never does; ends with the server's code if it ended."""
    deadline = time.monotonic() + timeout_s
    last: dict[str, Any] = {"reason": "no answer from the control port"}
    while time.monotonic() < deadline:
        if (code := server.poll()) is not None:
            raise _ServerEnded(code)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", settings.control_port, timeout=5)
            connection.request("GET", "/ready")
            answer = connection.getresponse()
            last = json.loads(answer.read())
            if answer.status == 200:
                return last
        except (OSError, ValueError, http.client.HTTPException):
            pass
        time.sleep(POLL_S)
    raise BuilderError(f"not ready after {timeout_s:g} s: {last['reason']}", hint="--timeout gives it longer")


class _ServerEnded(BuilderError):
    """Its exit code is the server's."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the server ended with exit code {code} before it was ready", hint="see its log above")
        self.exit_code = code or 1  # type: ignore[misc]


def _environment(pid: int) -> dict[str, str]:
    """The environment that process `pid` was started with, as the kernel keeps it."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(pair.partition("=")[::2] for pair in raw.split("\0") if "=" in pair)


def _stop(server: subprocess.Popen[bytes], grace_s: float) -> int | None:
    """SIGTERM; its exit code, or None if it had to be killed."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
    try:
        return server.wait(grace_s + 5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
        return None
