"""Every claim can fail: each test shows the check holding, and the defect that breaks it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from builder.config.spec import Budget, Expect
from builder.format.phases import Phase
from builder.runtime.drive import LevelReport, Percentiles
from builder.verify import checks
from builder.verify.checks import Asked
from builder.verify.report import Check, Level
from builder.verify.server import Readiness

DIGEST = "sha256:" + "a1" * 32
PARIS = "The capital of France is Paris."


def process(**changes: Any) -> dict[str, Any]:
    base = {"pid": 7, "name": "llama", "uid": 10001, "readable": True, "cuda_module_loading": "LAZY"}
    return {**base, "devices": ["/dev/nvidia0"], **changes}


def look(*engine: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"engine": list(engine), "markers": {"a1" * 32: DIGEST}, "gpus": 1, "runtime_uid": 10001, **changes}


def by_id(found: list[Check]) -> dict[str, Check]:
    return {c.id: c for c in found}


def test_the_same_answer_twice_holds() -> None:
    found = checks.answers(Expect(contains="paris"), Asked(PARIS, PARIS, 0.0))
    assert [c.id for c in found] == ["answer.not-empty", "answer.deterministic", "answer.contains"]
    assert all(c.ok for c in found)


@pytest.mark.parametrize(
    ("first", "second", "failed"),
    [
        ("", "", {"answer.not-empty", "answer.contains"}),
        (" \n", " \n", {"answer.not-empty", "answer.contains"}),
        (PARIS, "Paris.", {"answer.deterministic"}),
        ("Lyon.", "Lyon.", {"answer.contains"}),
    ],
)
def test_wrong_answers_fail(first: str, second: str, failed: set[str]) -> None:
    found = checks.answers(Expect(contains="paris"), Asked(first, second, 0.0))
    assert {c.id for c in found if not c.ok} == failed


def test_a_whole_answer_is_compared_where_its_digest_is_described() -> None:
    sha = checks.answer_of(Expect(), Asked(PARIS, PARIS, 0.0)).sha256
    assert sha == hashlib.sha256(b"The capital of France is Paris.").hexdigest()
    assert by_id(checks.answers(Expect(sha256=sha), Asked(PARIS, PARIS, 0.0)))["answer.sha256"].ok
    assert not by_id(checks.answers(Expect(sha256=sha), Asked("Lyon.", "Lyon.", 0.0)))["answer.sha256"].ok
    assert "answer.sha256" not in by_id(checks.answers(Expect(), Asked(PARIS, PARIS, 0.0)))


def test_lazy_in_every_engine_process_holds() -> None:
    assert checks.module_loading(look(process(), process(pid=8))).ok


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ([], "no engine process"),
        ([process(), process(pid=8, cuda_module_loading="EAGER")], r"llama (pid 8): EAGER"),
        ([process(cuda_module_loading=None)], "not set"),
        ([process(readable=False, cuda_module_loading=None)], "not readable"),
    ],
)
def test_anything_else_than_lazy_fails(engine: list[dict[str, Any]], says: str) -> None:
    found = checks.module_loading(look(*engine))
    assert not found.ok
    assert says in found.found


def test_root_fails() -> None:
    assert checks.user(look(process())).ok
    assert not checks.user(look(process(), runtime_uid=0)).ok
    assert not checks.user(look(process(uid=0))).ok
    assert not checks.user(look(runtime_uid=None)).ok


def test_another_versions_marker_fails() -> None:
    assert checks.weights(look(), DIGEST).ok
    assert not checks.weights(look(), "sha256:" + "00" * 32).ok
    assert not checks.weights(look(markers={"a1" * 32: "sha256:" + "00" * 32}), DIGEST).ok
    assert not checks.weights(look(markers={}), DIGEST).ok


def test_a_gpu_that_the_engine_does_not_open_fails() -> None:
    assert checks.gpu(look(process())).ok
    assert not checks.gpu(look(process(devices=[]))).ok
    assert not checks.gpu(look(process(), gpus=0)).ok


def test_ready_before_the_first_token_fails() -> None:
    phases = [Phase("first_token", 9.0, 10.0)]
    assert all(c.ok for c in checks.readiness(Readiness(10.5, denied=3, refused=2), phases))
    early = by_id(checks.readiness(Readiness(9.5, denied=3, refused=2), phases))
    assert not early["ready.after-first-token"].ok
    assert early["ready.after-first-token"].found == "0.50 s before it"
    assert not by_id(checks.readiness(Readiness(10.5, 3, 2), []))["ready.after-first-token"].ok


def test_ready_that_never_said_no_fails() -> None:
    found = by_id(checks.readiness(Readiness(10.5, denied=0, refused=9), [Phase("first_token", 9.0, 10.0)]))
    assert not found["ready.said-no-first"].ok


def test_a_missing_or_unknown_phase_fails() -> None:
    phases = [Phase(name, 0.0, 1.0) for name in checks.NEEDED_PHASES]
    metrics = "\n".join(f'builder_phase_seconds{{phase="{name}"}} 1' for name in checks.NEEDED_PHASES)
    assert all(c.ok for c in checks.recorded(phases, metrics))
    assert not by_id(checks.recorded(phases[1:], metrics))["phases.recorded"].ok
    assert not by_id(checks.recorded([*phases, Phase("nap", 0.0, 1.0)], metrics))["phases.recorded"].ok
    assert not by_id(checks.recorded(phases, ""))["metrics.phases"].ok


def test_a_start_with_a_captured_cache_that_compiles_fails() -> None:
    hit = "builder_compile_cache_hit 1\nbuilder_compile_cache_new_files "
    assert checks.compiled("") == checks.compiled("builder_compile_cache_hit 0\nbuilder_compile_cache_new_files 3") == []
    assert [c.ok for c in checks.compiled(hit + "0")] == [True]
    assert [(c.ok, c.found) for c in checks.compiled(hit + "3")] == [(False, "3 new files")]
    assert [c.ok for c in checks.compiled("builder_compile_cache_hit 1")] == [False]


def test_a_request_without_an_answer_fails() -> None:
    p = Percentiles(0.1, 0.2, 0.3)
    good = checks.level_of(LevelReport(2, 10, 0, 1.0, 100, p, p, p))
    bad = checks.level_of(LevelReport(4, 10, 1, 1.0, 90, p, p, p, ("HTTP 503",)))
    found = checks.load([good, bad])
    assert [(c.id, c.ok) for c in found] == [("load.2", True), ("load.4", False)]
    assert found[1].found == "1 of 10 failed: HTTP 503"
    assert good.tokens_per_s == 100.0


def test_a_level_with_no_answer_has_no_latency() -> None:
    none = Percentiles()
    level = checks.level_of(LevelReport(1, 3, 3, 1.0, 0, none, none, none))
    assert (level.ttft_p50, level.total_p99) == (None, None)


def test_budgets_compare_with_their_own_figure(report: Any) -> None:
    made = report()
    low, high = Level(1, 1, 0, 1.0, 0.1, 0.2, 0.3, 1, 1, 1, 1), Level(8, 1, 0, 1.0, 9, 9, 9, 9, 9, 9, 9)
    budget = Budget.model_validate({"cold_start_p95": "4s", "first_token_p95": "200ms", "image_size": "149999999B"})
    found = {b.id: b for b in checks.budgets(budget, made.runs, [high, low], made.image)}
    assert (found["cold_start_p95"].found, found["cold_start_p95"].ok) == (4.0, True)  # equal is within
    assert (found["first_token_p95"].found, found["first_token_p95"].ok) == (0.2, True)  # the lowest level
    assert (found["image_size"].found, found["image_size"].ok) == (150_000_000, False)


def test_a_budget_without_a_figure_is_not_judged(report: Any) -> None:
    assert checks.budgets(Budget.model_validate({"first_token_p95": "1s", "image_size": "1B"}), report().runs, [], None) == []
