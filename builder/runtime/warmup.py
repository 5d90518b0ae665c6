"""Requests before ready: until the first token, then every shape until its latency stops falling.

A server of tensors gets a batch as one request, if its model takes batches, and otherwise as so many requests at once.

The first requests pay for lazily loaded kernels, page faults over the weights and caches of all kinds. A shape is
settled when a round's median latency is less than 10 % below the best before it; rounds are bounded, so a server that
never settles becomes ready too, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from builder.errors import BuilderError, RemoteError
from builder.runtime.drive import LevelReport, asking, run_level

MAX_ROUNDS = 6
SETTLED = 0.10  # relative fall from the best round so far that still counts as none; run-to-run noise on a quiet CPU is 3-8 %
NEW_TOKENS = 16  # per request: decoding kernels run, and a round stays short


@dataclass(frozen=True)
class Shape:
    """One warmed shape. first_s, stable_s: median request time of the first and the last round.

    settled: it stopped falling within the rounds and the time.  error: why it could not be warmed, or "".
    """

    batch: int
    tokens: int
    rounds: int
    first_s: float
    stable_s: float
    settled: bool
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "first_s": round(self.first_s, 6), "stable_s": round(self.stable_s, 6)}


def first_token(base_url: str, model: str, *, timeout_s: float, protocol: str = "openai") -> dict[str, Any]:
    """One request, streamed where the protocol streams. Returns what to record: seconds to the first token.

    Raises BuilderError if the engine, though healthy, answers nothing.
    """
    answer = asking(protocol)(base_url, model, "Say hello.", max_tokens=4, timeout_s=timeout_s)
    if not answer.tokens:
        raise BuilderError(f"the engine's first answer is empty (finish reason {answer.finish!r})", hint="see the engine's log")
    return {"ttft_s": round(answer.ttft_s, 6), "tokens": answer.tokens}


def level_of(protocol: str) -> Callable[..., LevelReport]:
    """What asks one round of a shape."""
    return _tensors if protocol == "v2" else run_level


def _tensors(base_url: str, model: str, *, concurrency: int, requests: int, **rest: Any) -> LevelReport:
    from builder.runtime import v2

    try:
        batches = v2.metadata(base_url, model, timeout_s=rest["timeout_s"]).batches
    except RemoteError:
        batches = False  # the requests below fail too, and are counted
    if batches:
        return run_level(base_url, model, concurrency=1, requests=1, asker=v2.Asker(concurrency), **rest)
    return run_level(base_url, model, concurrency=concurrency, requests=requests, asker=v2.Asker(), **rest)


def warm(
    base_url: str,
    model: str,
    batches: tuple[int, ...],
    tokens: tuple[int, ...],
    *,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
    level: Callable[..., LevelReport] = run_level,
) -> list[Shape]:
    """Every batch size with every prompt length, in the order given. Never raises for a shape the engine refuses.

    budget_s: for all shapes together; what is not warm by then is reported as such.
    """
    deadline = clock() + budget_s
    return [_shape(base_url, model, b, t, deadline, clock, level) for t in tokens for b in batches]


def _shape(
    base_url: str,
    model: str,
    batch: int,
    tokens: int,
    deadline: float,
    clock: Callable[[], float],
    level: Callable[..., LevelReport],
) -> Shape:
    rounds: list[float] = []
    settled = False
    while len(rounds) < MAX_ROUNDS and not settled and (remaining := deadline - clock()) > 0:
        # A seed for each shape and round: a prompt seen before would be answered from the engine's prefix cache.
        report = level(base_url, model, concurrency=batch, requests=batch, prompt_tokens=tokens, max_tokens=NEW_TOKENS,
                       timeout_s=remaining, seed=1 + batch * MAX_ROUNDS + len(rounds))  # fmt: skip
        if report.errors:
            return Shape(batch, tokens, len(rounds), *_ends(rounds), False, report.error_samples[0])
        settled = bool(rounds) and report.total.p50 > min(rounds) * (1 - SETTLED)
        rounds.append(report.total.p50)
    return Shape(batch, tokens, len(rounds), *_ends(rounds), settled, "" if rounds else "no time left")


def _ends(rounds: list[float]) -> tuple[float, float]:
    return (rounds[0], rounds[-1]) if rounds else (0.0, 0.0)
