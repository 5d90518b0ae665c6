from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from builder.runtime.drive import LevelReport, Percentiles
from builder.runtime.warmup import MAX_ROUNDS, warm


def report(seconds: float, errors: tuple[str, ...] = ()) -> LevelReport:
    p = Percentiles(seconds, seconds, seconds)
    return LevelReport(1, 1, len(errors), seconds, 1, p, p, p, errors)


class Levels:
    """Stands for run_level: the next latency of a list; remembers what it was asked."""

    def __init__(self, *seconds: float) -> None:
        self.next: Iterator[float] = iter(seconds)
        self.asked: list[dict[str, Any]] = []

    def __call__(self, url: str, model: str, **asked: Any) -> LevelReport:
        self.asked.append(asked)
        return report(next(self.next))


def clock(step: float) -> Any:
    ticks = iter(range(10**6))
    return lambda: next(ticks) * step


@pytest.mark.parametrize(
    ("seconds", "rounds", "stable"),
    [
        ((9.0, 1.0, 0.95), 3, 0.95),  # 5 % below the best: settled
        ((1.0, 1.0), 2, 1.0),
        ((1.0, 1.3), 2, 1.3),  # slower is not falling
        ((4.0, 2.0, 1.0, 0.99), 4, 0.99),
    ],
)
def test_a_shape_is_warm_when_latency_stops_falling(seconds: tuple[float, ...], rounds: int, stable: float) -> None:
    [shape] = warm("u", "m", (1,), (32,), budget_s=60, clock=clock(0), level=Levels(*seconds))
    assert (shape.rounds, shape.first_s, shape.stable_s, shape.settled) == (rounds, seconds[0], stable, True)


def test_rounds_are_bounded() -> None:
    [shape] = warm("u", "m", (1,), (32,), budget_s=60, clock=clock(0), level=Levels(*(2.0**-n for n in range(50))))
    assert (shape.rounds, shape.settled) == (MAX_ROUNDS, False)


def test_every_shape_has_prompts_of_its_own() -> None:
    levels = Levels(*[1.0] * 8)
    shapes = warm("u", "m", (1, 4), (32, 128), budget_s=60, clock=clock(0), level=levels)
    assert [(s.batch, s.tokens) for s in shapes] == [(1, 32), (4, 32), (1, 128), (4, 128)]
    assert [(a["concurrency"], a["requests"], a["prompt_tokens"]) for a in levels.asked[:3:2]] == [(1, 1, 32), (4, 4, 32)]
    assert len({(a["seed"], a["prompt_tokens"]) for a in levels.asked}) == 8


def test_a_refused_shape_is_reported_and_the_others_go_on() -> None:
    def level(url: str, model: str, **asked: Any) -> LevelReport:
        return report(1.0, ("HTTP 400 too long",) if asked["prompt_tokens"] == 9000 else ())

    long, short = warm("u", "m", (1,), (9000, 32), budget_s=60, clock=clock(0), level=level)
    assert (long.error, long.settled, long.rounds) == ("HTTP 400 too long", False, 0)
    assert (short.error, short.settled) == ("", True)


def test_time_is_bounded_over_all_shapes() -> None:
    first, second = warm("u", "m", (1, 2), (32,), budget_s=3.5, clock=clock(1), level=Levels(*(2.0**-n for n in range(9))))
    assert (first.rounds, first.settled) == (3, False)
    assert second.error == "no time left"
