"""The proof: start the server, wait, ask, look inside, load it, compare with the budgets. Returns what was seen.

Nothing here judges: a report of a failed check is still a report. `VerifyReport.raise_for_failures` is the verdict.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from builder import __version__
from builder.config.spec import Verify
from builder.errors import CapabilityError, RemoteError
from builder.format.phases import Phase
from builder.progress import NoProgress, Progress, step
from builder.runtime import drive
from builder.runtime.engines import ENGINES
from builder.verify import checks, container, host, in_place, server
from builder.verify.launch import Launch
from builder.verify.report import Answer, Check, HostFacts, ImageFacts, Level, Run, VerifyReport
from builder.verify.server import Readiness, Server

TIMEOUT_S = 600.0
LOAD_PROMPT_TOKENS = 32
Start = Callable[[], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Seen:
    """What one start showed."""

    run: Run
    readiness: Readiness
    asked: checks.Asked | None
    silent: Check | None
    look: dict[str, Any]
    metrics: str
    levels: tuple[Level, ...] = ()
    notes: tuple[str, ...] = ()
    gpu: bool = False


@dataclass(frozen=True)
class _Plan:
    launch: Launch
    verify: Verify
    start: Start
    progress: Progress = field(default_factory=NoProgress)
    timeout_s: float = TIMEOUT_S

    @property
    def asker(self) -> Callable[..., drive.Answer]:
        """As the engine's protocol wants it: a question, or tensors made from one."""
        return drive.asking(ENGINES[self.launch.engine].protocol)


def verify_image(
    reference: str,
    launch: Launch,
    verify: Verify,
    *,
    options: container.Options | None = None,
    progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
) -> VerifyReport:
    """What the built image `reference` does on this machine's Docker engine.

    timeout_s: for one start, until ready.
    Raises CapabilityError (no engine, image or required GPU) and BuilderError (it ended, or never became ready).
    """
    options = options or container.Options(gpu=verify.gpu)
    with container.client() as engine:
        image, machine = container.image_facts(engine, reference), host.facts(docker=container.engine_version(engine))
    plan = _Plan(
        launch,
        verify,
        lambda: container.start(reference, launch, options),
        progress or NoProgress(),
        timeout_s,
    )
    return _report(plan, machine, image)


def verify_in_place(
    launch: Launch,
    verify: Verify,
    *,
    environ: Mapping[str, str],
    progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
) -> VerifyReport:
    """The same without image and engine: this Python's own runtime on this machine. environ: see `in_place.start`."""
    if verify.gpu == "required" and not host.gpus():
        raise CapabilityError(
            "verify.gpu is required, but this machine has no NVIDIA GPU (nvidia-smi lists none)",
            hint="run on a GPU machine, or set verify.gpu: auto",
        )
    start = functools.partial(in_place.start, launch, environ=environ)
    plan = _Plan(launch, verify, start, progress or NoProgress(), timeout_s)
    return _report(plan, host.facts(), None)


def _report(plan: _Plan, machine: HostFacts, image: ImageFacts | None) -> VerifyReport:
    count = plan.verify.runs
    seen = [_one(plan, number, last=number == count) for number in range(1, count + 1)]
    final, runs = seen[-1], tuple(s.run for s in seen)
    expect = plan.verify.expect
    return VerifyReport(
        name=plan.launch.name,
        created=time.time(),
        target="container" if image else "in-place",
        manifest=plan.launch.manifest,
        host=machine,
        runs=runs,
        answer=checks.answer_of(expect, final.asked) if final.asked else Answer(expect.prompt, "", ""),
        image=image,
        checks=tuple(_checks(plan, seen, in_image=image is not None)),
        load=final.levels,
        budgets=tuple(checks.budgets(plan.verify.budget, runs, final.levels, image)),
        notes=tuple(_notes(plan, seen, in_image=image is not None)),
        tool=__version__,
    )


def _one(plan: _Plan, number: int, *, last: bool) -> Seen:
    """One cold start; on the last also the load."""
    count = plan.verify.runs
    title = f"verify: start {number} of {count}" if count > 1 else "verify: start"
    with plan.start() as running:
        readiness = server.wait_ready(running, timeout_s=plan.timeout_s, progress=plan.progress, title=title)
        url, asked, silent = server.base_url(running), None, None
        try:
            asked = checks.ask_twice(url, plan.launch.name, plan.verify.expect, now=time.time(), asker=plan.asker)
        except RemoteError as exc:
            silent = checks.silent(exc)
        run = Run(
            asked=running.asked,
            ready=readiness.at,
            first_token=asked.first_token if asked else None,
            poll_s=server.POLL_S,
            phases=(Phase("container_start", running.asked, running.started(), "host"), *server.phases(running)),
        )
        look, metrics = running.look(), server.metrics(running)
        levels = _load(plan, url) if last and asked else ()
        return Seen(
            run,
            readiness,
            asked,
            silent,
            look,
            metrics,
            levels,
            tuple(running.notes),
            running.gpu,
        )


def _load(plan: _Plan, url: str) -> tuple[Level, ...]:
    levels, load = [], plan.verify.load
    for concurrency in load.concurrency:
        with step(plan.progress, f"verify: load, {concurrency} at a time"):
            levels.append(
                checks.level_of(
                    drive.run_level(
                        url,
                        plan.launch.name,
                        concurrency=concurrency,
                        requests=load.requests,
                        prompt_tokens=LOAD_PROMPT_TOKENS,
                        max_tokens=load.max_tokens,
                        seed=concurrency,
                        asker=plan.asker,
                    )
                )
            )
    return tuple(levels)


def _checks(plan: _Plan, seen: list[Seen], *, in_image: bool) -> list[Check]:
    """All claims; with several starts a claim holds if it held in each, and the first failure is the one shown."""
    found: dict[str, Check] = {}
    for one in seen:
        for check in _checks_of(plan, one, in_image=in_image):
            if check.id not in found or found[check.id].ok:
                found[check.id] = check
    texts = {one.asked.first for one in seen if one.asked}
    if len(seen) > 1:
        held = len(texts) == 1 and all(one.asked for one in seen)
        text = f"{len(texts)} different answers in {len(seen)} starts"
        found["answer.every-start"] = Check(
            "answer.every-start", held, "the same" if held else text, "the same after every start"
        )
    return list(found.values())


def _checks_of(plan: _Plan, one: Seen, *, in_image: bool) -> list[Check]:
    expect = plan.verify.expect
    answers = checks.answers(expect, one.asked) if one.asked else [one.silent] if one.silent else []
    out = [*answers, checks.module_loading(one.look), checks.weights(one.look, plan.launch.manifest)]
    if in_image:
        out.append(checks.user(one.look))
    if one.gpu:
        out.append(checks.gpu(one.look))
    out += checks.readiness(one.readiness, one.run.phases)
    out += checks.recorded(one.run.lane("container"), one.metrics)
    out += checks.compiled(one.metrics)
    return out + checks.load(one.levels)


def _notes(plan: _Plan, seen: list[Seen], *, in_image: bool) -> list[str]:
    notes = list(dict.fromkeys(note for one in seen for note in one.notes))
    if not in_image:
        notes.append("Run in place: no image was started, so image size, container start and user are not part of this report.")
    if not any(one.gpu for one in seen) and in_image:
        notes.append("No GPU was used.")
    if plan.launch.models:
        notes.append("The weights were on this machine before the start; no fetch was measured.")
    if len(seen) == 1:
        notes.append("One start: its p95 is that start.")
    return notes
