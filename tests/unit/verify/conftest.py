"""A synthetic report with known figures: every number below was chosen, so expectations are written out, not computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from builder.format.phases import Phase
from builder.verify.report import Answer, BudgetResult, Check, HostFacts, ImageFacts, Level, Run, VerifyReport

DIGEST = "sha256:" + "a1" * 32
T0 = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC


def make_run(cold_s: float = 4.0, *, at: float = T0) -> Run:
    """Ready after cold_s; between 3.0 s and the last 0.5 s nothing is recorded."""
    return Run(
        asked=at,
        ready=at + cold_s,
        first_token=at + cold_s + 0.25,
        poll_s=0.05,
        phases=(
            Phase("container_start", at, at + 0.5, "host"),
            Phase("runtime_import", at + 0.4, at + 0.75),
            Phase("weights_all", at + 0.75, at + 2.0, detail={"fetched_bytes": 98_000_000, "chunks": 9}),
            Phase("engine_init", at + 2.0, at + 3.0),
            Phase("first_token", at + cold_s - 0.5, at + cold_s - 0.25),
            Phase("stable", at + cold_s - 0.25, at + cold_s),
        ),
    )


def make_report(**changes: Any) -> VerifyReport:
    base = VerifyReport(
        name="smollm2",
        created=T0 + 60,
        target="container",
        manifest=DIGEST,
        host=HostFacts(cores=2, memory=25 << 30, cpu="Test CPU", system="Linux 6.1 x86_64", docker="26.1.5"),
        runs=(make_run(),),
        answer=Answer("What is the capital of France?", "The capital of France is Paris.", "c3" * 32),
        image=ImageFacts("demo/smollm2:latest", "sha256:" + "b2" * 32, 150_000_000, "compressed, as a registry holds it"),
        checks=(
            Check("answer.not-empty", True, "'The capital of France is Paris.'", "some text"),
            Check("image.user", False, "uid 0", "not root"),
        ),
        load=(
            Level(1, 64, 0, 6.4, 0.02, 0.03, 0.04, 0.1, 0.12, 0.13, 160.0),
            Level(4, 64, 64, 1.0, None, None, None, None, None, None, 0.0, ("HTTP 503",)),
        ),
        budgets=(BudgetResult("cold_start_p95", True, 4.0, 60.0, "s"), BudgetResult("image_size", False, 2e8, 1e8, "B")),
        notes=("No GPU was used.",),
        tool="0.1.0",
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture
def report() -> Callable[..., VerifyReport]:
    return make_report


@pytest.fixture
def run() -> Callable[..., Run]:
    return make_run
