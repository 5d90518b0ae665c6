"""The report as a value: figures, verdict, JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from builder.errors import BudgetError, ClaimError, ConfigError
from builder.verify.report import BudgetResult, Check, Run, VerifyReport, dumps, from_json, loads, shorten

Make = Callable[..., VerifyReport]


def test_unaccounted_is_what_no_phase_of_any_lane_covers(run: Callable[..., Run]) -> None:
    assert run(4.0).unaccounted_s == pytest.approx(0.5)  # 3.0 to 3.5; host and container overlap at 0.4 and count once
    assert run(4.0).cold_start_s == pytest.approx(4.0)
    assert run(4.0).first_answer_s == pytest.approx(4.25)


def test_the_p95_is_a_run_that_happened(report: Make, run: Callable[..., Run]) -> None:
    runs = tuple(run(4.0 + i, at=1000.0 * i) for i in range(20))
    assert report(runs=runs).cold_start_p95 == pytest.approx(22.0)  # the 19th of 20, not the slowest


def test_json_both_ways(report: Make) -> None:
    assert loads(dumps(report())) == report()


def test_json_holds_the_derived_figures(report: Make) -> None:
    raw = json.loads(dumps(report()))
    assert (raw["schema"], raw["ok"], raw["cold_start_p95_s"]) == (1, False, 4.0)
    assert raw["runs"][0]["unaccounted_s"] == pytest.approx(0.5)


def test_a_run_without_an_answer_survives_json(report: Make, run: Callable[..., Run]) -> None:
    import dataclasses

    silent = dataclasses.replace(run(), first_token=None)
    assert loads(dumps(report(runs=(silent,)))).runs[0].first_answer_s is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "schema 1, found None"),
        ('{"schema": 2}', "schema 1, found 2"),
        ('{"schema": 1}', "KeyError: 'name'"),
    ],
)
def test_what_is_not_a_report_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        loads(text, where="x.json")


def test_a_report_with_a_mistyped_part_is_refused(report: Make) -> None:
    raw = report().to_json()
    raw["checks"] = [{"id": "x"}]
    with pytest.raises(ConfigError, match="not a verify report"):
        from_json(raw)


def test_all_failed_checks_are_named_before_any_budget(report: Make) -> None:
    checks = (Check("a", False, "1", "2"), Check("b", True, "", ""), Check("c", False, "x", "y"))
    with pytest.raises(ClaimError) as caught:
        report(checks=checks).raise_for_failures()
    assert caught.value.exit_code == 7
    assert "2 of 3 checks failed" in caught.value.message
    assert "a: expected 2, found 1" in caught.value.message
    assert "c: expected y, found x" in caught.value.message
    assert caught.value.where == {"checks": ["a", "c"]}


def test_all_missed_budgets_are_named(report: Make) -> None:
    budgets = (BudgetResult("one", False, 2.0, 1.0, "s"), BudgetResult("two", False, 3e9, 2e9, "B"))
    with pytest.raises(BudgetError) as caught:
        report(checks=(), budgets=budgets).raise_for_failures()
    assert caught.value.exit_code == 6
    assert "one: 2.00 s, budget 1.00 s" in caught.value.message
    assert "two: 2.79 GiB, budget 1.86 GiB" in caught.value.message


def test_a_narrow_miss_does_not_look_like_a_hit() -> None:
    assert BudgetResult("x", False, 60.04, 60.0, "s").texts == ("60.04 s", "60.0 s")


def test_nothing_is_raised_when_all_held(report: Make) -> None:
    fine = report(checks=(Check("a", True, "", ""),), budgets=())
    fine.raise_for_failures()
    assert fine.ok


def test_shortened_text_shows_control_characters() -> None:
    assert shorten("a\x1b[31mb") == r"'a\x1b[31mb'"
    assert len(shorten("x" * 1000)) == 80
