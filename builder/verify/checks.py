"""The claims, tested one by one. Each function looks at what was observed and says what it found; none starts anything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.config.spec import Budget, Expect
from builder.errors import RemoteError
from builder.format.phases import PHASES, Phase
from builder.runtime import drive
from builder.verify.report import Answer, BudgetResult, Check, ImageFacts, Level, Run, shorten
from builder.verify.server import Readiness

LAZY = "CUDA_MODULE_LOADING"
ANSWER_TOKENS = 32
NEEDED_PHASES = ("runtime_import", "weights_all", "engine_init", "first_token")


@dataclass(frozen=True)
class Asked:
    """The question, asked twice. first_token: epoch seconds at which the first answer's first token arrived."""

    first: str
    second: str
    first_token: float


def ask_twice(
    base_url: str,
    model: str,
    expect: Expect,
    *,
    now: float,
    timeout_s: float = drive.TIMEOUT_S,
    asker: Callable[..., drive.Answer] = drive.ask,
) -> Asked:
    """Both answers, at temperature 0. now: epoch seconds.  asker: see `drive.asking`. Raises RemoteError."""
    one = asker(base_url, model, expect.prompt, max_tokens=ANSWER_TOKENS, timeout_s=timeout_s)
    two = asker(base_url, model, expect.prompt, max_tokens=ANSWER_TOKENS, timeout_s=timeout_s)
    return Asked(one.text, two.text, now + one.ttft_s)


def answer_of(expect: Expect, asked: Asked) -> Answer:
    return Answer(expect.prompt, asked.first, hashlib.sha256(asked.first.encode()).hexdigest())


def answers(expect: Expect, asked: Asked) -> list[Check]:
    """That the model answers, always the same, and what it should. Other processors may round, and so answer, differently:
    the whole answer is compared only where verify.expect.sha256 asks for it.
    """
    text = shorten(asked.first)
    checks = [
        Check("answer.not-empty", bool(asked.first.strip()), text, "some text"),
        Check(
            "answer.deterministic",
            asked.first == asked.second,
            "the same twice" if asked.first == asked.second else f"{text}, then {shorten(asked.second)}",
            "the same twice",
        ),
    ]
    if expect.contains is not None:
        held = expect.contains.casefold() in asked.first.casefold()
        checks.append(Check("answer.contains", held, text, f"contains {expect.contains!r}"))
    if expect.sha256 is not None:
        found = hashlib.sha256(asked.first.encode()).hexdigest()
        checks.append(Check("answer.sha256", found == expect.sha256, f"sha256 {found}", f"sha256 {expect.sha256}"))
    return checks


def module_loading(look: Mapping[str, Any]) -> Check:
    """CUDA_MODULE_LOADING=LAZY in the environment of every process below the runtime: those are the engine."""
    engine = look["engine"]
    if not engine:
        return Check("engine.module-loading", False, "no engine process below the runtime", f"{LAZY}=LAZY in each")
    wrong = [p for p in engine if p["cuda_module_loading"] != "LAZY"]
    found = ", ".join(f"{p['name']} (pid {p['pid']}): {_value(p)}" for p in wrong) or f"LAZY in {_processes(len(engine))}"
    return Check("engine.module-loading", not wrong, found, f"{LAZY}=LAZY in each engine process")


def user(look: Mapping[str, Any]) -> Check:
    """No process of the server is root."""
    uids = sorted({look["runtime_uid"], *(p["uid"] for p in look["engine"])} - {None})
    return Check("image.user", bool(uids) and 0 not in uids, f"uid {', '.join(map(str, uids)) or 'unknown'}", "not root")


def weights(look: Mapping[str, Any], manifest: str) -> Check:
    """The folder the runtime serves from is marked complete for exactly this manifest."""
    markers = look["markers"]
    held = markers.get(manifest.removeprefix("sha256:")) == manifest
    found = ", ".join(sorted(markers.values())) or "no complete model"
    return Check("weights.manifest", held, found, manifest)


def gpu(look: Mapping[str, Any]) -> Check:
    """The driver answers inside, and the engine holds a GPU's device file open."""
    opened = sorted({d for p in look["engine"] for d in p["devices"]})
    held = look["gpus"] > 0 and bool(opened)
    return Check(
        "engine.gpu",
        held,
        f"{look['gpus']} visible; opened by the engine: {', '.join(opened) or 'none'}",
        "in use by the engine",
    )


def readiness(seen: Readiness, phases: Sequence[Phase]) -> list[Check]:
    """The gate is honest: it said no first, and yes only once a token had been generated in warm-up."""
    token = [p.end for p in phases if p.phase == "first_token"]
    late = bool(token) and min(token) <= seen.at
    gap = f"{abs(seen.at - min(token)):.2f} s {'after' if late else 'before'} it" if token else "no warm-up token recorded"
    return [
        Check("ready.said-no-first", seen.denied > 0, f"{seen.denied} times no, then yes", "no, then yes"),
        Check("ready.after-first-token", late, gap, "after warm-up's first token"),
    ]


def recorded(phases: Sequence[Phase], metrics: str) -> list[Check]:
    """The runtime tells its phases, as records and as metrics."""
    names = {p.phase for p in phases}
    missing = [p for p in NEEDED_PHASES if p not in names]
    unknown = sorted(names - set(PHASES))
    found = ", ".join([f"without {p}" for p in missing] + [f"unknown {p}" for p in unknown]) or f"{len(names)} phases"
    absent = [p for p in NEEDED_PHASES if f'"{p}"' not in metrics]
    return [
        Check("phases.recorded", not missing and not unknown, found, ", ".join(NEEDED_PHASES)),
        Check(
            "metrics.phases", not absent, f"without {', '.join(absent)}" if absent else "all there", "/metrics has each phase"
        ),
    ]


def compiled(metrics: str) -> list[Check]:
    """A start that used a captured compile cache compiled nothing; no check where no such cache was used."""
    told = {name: value for name, _, value in (line.partition(" ") for line in metrics.splitlines())}
    if told.get("builder_compile_cache_hit") != "1":
        return []
    new = told.get("builder_compile_cache_new_files", "not told")
    return [Check("compile-cache.hit", new == "0", f"{new} new files", "nothing compiled")]


def load(levels: Sequence[Level]) -> list[Check]:
    """Every request of the load test was answered."""
    out = []
    for level in levels:
        sample = f": {level.error_samples[0]}" if level.error_samples else ""
        failed = f"{level.errors} of {level.requests} failed{sample}"
        out.append(
            Check(
                f"load.{level.concurrency}",
                level.errors == 0,
                failed if level.errors else f"{level.requests} answered",
                "every request answered",
            )
        )
    return out


def budgets(budget: Budget, runs: Sequence[Run], levels: Sequence[Level], image: ImageFacts | None) -> list[BudgetResult]:
    """Every limit that is set and has a figure, compared. A figure equal to its limit is within it."""
    found: list[tuple[str, float | None, float | None, str]] = [
        ("cold_start_p95", drive.nearest_rank([r.cold_start_s for r in runs], 95), budget.cold_start_p95, "s"),
        ("first_token_p95", _lowest(levels), budget.first_token_p95, "s"),
        ("image_size", float(image.size) if image else None, budget.image_size, "B"),
    ]
    return [
        BudgetResult(name, value <= limit, value, float(limit), unit)
        for name, value, limit, unit in found
        if limit is not None and value is not None
    ]


def level_of(report: drive.LevelReport) -> Level:
    """The load generator's report in the form that is kept."""
    none = report.requests <= report.errors
    ttft, total = report.ttft, report.total
    return Level(
        concurrency=report.concurrency,
        requests=report.requests,
        errors=report.errors,
        seconds=report.seconds,
        ttft_p50=None if none else ttft.p50,
        ttft_p95=None if none else ttft.p95,
        ttft_p99=None if none else ttft.p99,
        total_p50=None if none else total.p50,
        total_p95=None if none else total.p95,
        total_p99=None if none else total.p99,
        tokens_per_s=report.tokens_per_s,
        error_samples=report.error_samples,
    )


def silent(exc: RemoteError) -> Check:
    """The server said it is ready, and then did not answer."""
    return Check("answer.not-empty", False, exc.message, "an answer")


def _lowest(levels: Sequence[Level]) -> float | None:
    return min(levels, key=lambda v: v.concurrency).ttft_p95 if levels else None


def _value(process: Mapping[str, Any]) -> str:
    if not process["readable"]:
        return "environment not readable"
    return "not set" if process["cuda_module_loading"] is None else str(process["cuda_module_loading"])


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"
