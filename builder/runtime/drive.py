"""A load generator for model servers of both protocols: closed loop, streaming, standard library only.

Warm-up, `selftest` and `builder verify` drive servers through this one file, so that their figures mean the same:

    ttft    request sent, until the first non-empty piece of text has arrived
    total   request sent, until the stream has ended
    tpot    (total - ttft) / (tokens - 1): time per further token; absent for answers of one token

Percentiles are by nearest rank: the smallest sample that at least p % of the samples do not exceed; so each printed
figure is one that really happened. Each request opens its own connection, as a new client would. Ships inside images.

A server of tensors (protocol "v2", builder.runtime.v2) answers in one piece: its ttft is its total, and one inference counts
as one token. Its question is a text all the same: it decides what the inputs hold, and how long they are.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from builder.errors import ConfigError, RemoteError

TIMEOUT_S = 120.0
ERROR_SAMPLES = 5  # distinct messages kept per level; the count is complete
# Frequent English words; each is one or two tokens in every tokenizer seen, so a prompt of n words has about n tokens.
WORDS = (  # noqa: SIM905, for a list of one word a line is not read by anyone
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend"
).split()


@dataclass(frozen=True)
class Answer:
    """One streamed answer. tokens: as the server counts them, else the pieces received; prompt_tokens: 0 if unknown."""

    text: str
    ttft_s: float
    total_s: float
    tokens: int
    prompt_tokens: int = 0
    finish: str = ""

    @property
    def tpot_s(self) -> float | None:
        return (self.total_s - self.ttft_s) / (self.tokens - 1) if self.tokens > 1 else None

    def to_json(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "ttft_s": round(self.ttft_s, 6),
            "total_s": round(self.total_s, 6),
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "finish": self.finish,
        }


@dataclass(frozen=True)
class Percentiles:
    """Seconds, by nearest rank. All zero when nothing was measured."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, samples: Sequence[float]) -> Percentiles:
        return cls(*(nearest_rank(samples, p) for p in (50, 95, 99))) if samples else cls()

    def to_json(self) -> dict[str, float]:
        return {"p50": round(self.p50, 6), "p95": round(self.p95, 6), "p99": round(self.p99, 6)}


@dataclass(frozen=True)
class LevelReport:
    """What one concurrency level showed. Latencies and tokens count good answers only; errors counts the others.

    seconds: wall clock of the whole level.  tokens_per_s: completion tokens of good answers over `seconds`.
    error_samples: up to five different messages.
    """

    concurrency: int
    requests: int
    errors: int
    seconds: float
    tokens: int
    ttft: Percentiles
    total: Percentiles
    tpot: Percentiles
    error_samples: tuple[str, ...] = field(default=())

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def requests_per_s(self) -> float:
        return (self.requests - self.errors) / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "concurrency": self.concurrency,
            "requests": self.requests,
            "errors": self.errors,
            "error_samples": list(self.error_samples),
            "seconds": round(self.seconds, 6),
            "tokens": self.tokens,
            "tokens_per_s": round(self.tokens_per_s, 3),
            "requests_per_s": round(self.requests_per_s, 3),
            "ttft_s": self.ttft.to_json(),
            "total_s": self.total.to_json(),
            "tpot_s": self.tpot.to_json(),
        }


def nearest_rank(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` % of the samples do not exceed.

    >>> nearest_rank([15, 20, 35, 40, 50], 30), nearest_rank([15, 20, 35, 40, 50], 100), nearest_rank([7], 50)
    (20, 50, 7)
    """
    if not samples:
        raise ValueError("no samples")
    return sorted(samples)[max(1, math.ceil(percent / 100 * len(samples))) - 1]


def prompts(count: int, words: int, *, seed: int = 0) -> list[str]:
    """`count` different prompts of `words` words; the same for the same seed, on every Python.

    Different from the first word on, so that a server's prefix cache cannot answer for the prompt's processing.
    """
    made = []
    for i in range(count):
        rng = random.Random(f"{seed}:{i}:{words}")
        made.append(" ".join(rng.choices(WORDS, k=max(1, words))))
    return made


def ask(
    base_url: str,
    model: str,
    prompt: str,
    *,
    max_tokens: int = 64,
    timeout_s: float = TIMEOUT_S,
    seed: int = 0,
    temperature: float = 0.0,
) -> Answer:
    """The server's answer to one user message, streamed.

    base_url: `http://host:port`, with or without `/v1`.  timeout_s: for the whole answer, first byte to last.
    Raises RemoteError: no connection, no answer in time, a status other than 200, a stream that breaks off.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.monotonic()
    deadline = started + timeout_s
    connection, path = _connect(base_url, timeout_s)
    try:
        connection.connect()
        sock = connection.sock
        started = time.monotonic()
        connection.request("POST", path + "/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RemoteError(f"{base_url}: HTTP {response.status} {_said(response.read(4096))}")
        return _collect(_events(response, sock, deadline), base_url, started)
    except TimeoutError as exc:
        raise RemoteError(f"{base_url}: no complete answer within {timeout_s:.0f} s") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise RemoteError(f"{base_url}: {type(exc).__name__}: {exc}") from exc
    finally:
        connection.close()


def asking(protocol: str) -> Callable[..., Answer]:
    """What asks a server of `protocol`, "openai" or "v2", and what `run_level` takes for `asker`."""
    from builder.runtime import v2

    return v2.Asker() if protocol == "v2" else ask


def run_level(
    base_url: str,
    model: str,
    *,
    concurrency: int,
    requests: int,
    prompt_tokens: int = 32,
    max_tokens: int = 32,
    timeout_s: float = TIMEOUT_S,
    seed: int = 0,
    asker: Callable[..., Answer] = ask,
) -> LevelReport:
    """`requests` different questions, at most `concurrency` at a time; each worker asks again when it has its answer.

    prompt_tokens: length of each question, about.  asker: see `asking`.  Errors are counted and sampled, never raised.
    """
    jobs = iter(prompts(requests, prompt_tokens, seed=seed))
    lock = threading.Lock()
    answers: list[Answer] = []
    errors: list[str] = []

    def worker() -> None:
        while True:
            with lock:
                prompt = next(jobs, None)
            if prompt is None:
                return
            try:
                answer = asker(base_url, model, prompt, max_tokens=max_tokens, timeout_s=timeout_s, seed=seed)
            except (RemoteError, ConfigError) as exc:
                with lock:
                    errors.append(exc.message)
            else:
                with lock:
                    answers.append(answer)

    _connect(base_url, timeout_s)  # a base_url that is wrong is the caller's mistake, not a server error
    started = time.monotonic()
    threads = [threading.Thread(target=worker, daemon=True) for _ in range(min(concurrency, requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return LevelReport(
        concurrency=concurrency,
        requests=requests,
        errors=len(errors),
        seconds=time.monotonic() - started,
        tokens=sum(a.tokens for a in answers),
        ttft=Percentiles.of([a.ttft_s for a in answers]),
        total=Percentiles.of([a.total_s for a in answers]),
        tpot=Percentiles.of([a.tpot_s for a in answers if a.tpot_s is not None]),
        error_samples=tuple(dict.fromkeys(errors))[:ERROR_SAMPLES],
    )


def _connect(base_url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    """A connection that is not open yet, and the path up to and including /v1."""
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(f"{base_url!r} is not a server's address", hint="give it as http://host:port")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname, url.port, timeout=timeout_s), url.path.rstrip("/").removesuffix("/v1") + "/v1"


def _events(response: http.client.HTTPResponse, sock: Any, deadline: float) -> Iterator[str]:
    """Payloads of the server-sent events. The socket's timeout shrinks with the deadline, so a dripping server ends too."""
    data: list[str] = []
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        sock.settimeout(remaining)
        raw = response.readline()
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if line:
            name, _, value = line.partition(":")
            if name in ("data", "error"):  # "error:" is how llama.cpp ends a stream that fails half-way
                data.append(value.removeprefix(" "))
        elif data:
            yield "\n".join(data)
            data.clear()
        if not raw:
            return


def _collect(events: Iterator[str], base_url: str, started: float) -> Answer:
    """The answer that `events` spell. Raises RemoteError if they report an error, or end before the answer does."""
    pieces: list[str] = []
    first, finish, usage = 0.0, "", dict[str, Any]()
    ended = False
    for event in events:
        if event == "[DONE]":
            ended = True
            break
        try:
            raw = json.loads(event)
            if raw.get("error") or "choices" not in raw:
                raise RemoteError(f"{base_url}: the stream reports {_said(event.encode())}")
            usage = raw.get("usage") or usage
            text, why = _delta(raw["choices"])
        except (ValueError, TypeError, AttributeError, KeyError) as exc:
            raise RemoteError(f"{base_url}: not a chat completion chunk: {event[:200]!r}") from exc
        finish = why or finish
        if text:
            first = first or time.monotonic()
            pieces.append(text)
    now = time.monotonic()
    if not (ended or finish):
        raise RemoteError(f"{base_url}: the stream broke off after {len(pieces)} pieces of text")
    return Answer(
        text="".join(pieces),
        ttft_s=(first or now) - started,
        total_s=now - started,
        tokens=int(usage.get("completion_tokens") or len(pieces)),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        finish=finish,
    )


def _delta(choices: list[dict[str, Any]]) -> tuple[str, str]:
    """Text and finish reason of one chunk. The usage chunk at the end has no choices."""
    if not choices:
        return "", ""
    delta = choices[0].get("delta") or {}
    return (delta.get("content") or delta.get("reasoning_content") or ""), (choices[0].get("finish_reason") or "")


def _said(body: bytes) -> str:
    """A server's error in one line: its message where it is JSON, else the first 200 characters."""
    text = body.decode("utf-8", "replace").strip()
    try:
        raw = json.loads(text)
        error = raw.get("error", raw) if isinstance(raw, dict) else raw
        message = error.get("message", error) if isinstance(error, dict) else error
        return str(message)[:200]
    except ValueError:
        return " ".join(text.split())[:200]
