from __future__ import annotations

import pytest

from builder.errors import ConfigError
from builder.runtime import commands
from builder.runtime.drive import LevelReport, Percentiles
from builder.runtime.selftest import load_failure


def report(requests: int, *errors: str) -> LevelReport:
    return LevelReport(2, requests, len(errors), 1.0, 0, Percentiles(), Percentiles(), Percentiles(), errors)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--concurrency", "0"),
        ("--concurrency", "1,0"),
        ("--concurrency", "-1"),
        ("--concurrency", "1,,2"),
        ("--concurrency", "two"),
        ("--requests", "0"),
        ("--requests", "-1"),
        ("--requests", "\u00b2"),
    ],
)
def test_a_load_of_nothing_is_refused_before_anything_starts(option: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        commands.main(["selftest", f"{option}={value}"])
    assert caught.value.message.startswith(f"{option} {value}: expected a whole number")


def test_a_level_without_an_answer_is_a_failure() -> None:
    assert load_failure(report(3)) == ""
    assert load_failure(report(3, "HTTP 500")) == "load 2: 1 of 3 requests failed: HTTP 500"
    assert load_failure(report(1, "HTTP 500")) == "load 2: 1 of 1 requests failed: HTTP 500"
    assert load_failure(report(0)) == "load 2: no request was completed"
