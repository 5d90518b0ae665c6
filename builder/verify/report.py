"""What was observed: one value with a JSON form, from which every page, table and verdict is made.

All instants are seconds since the epoch on the clock of the machine that ran the check; all durations are seconds.
Durations of the lanes "host" and "container" overlap, so they are shown apart and never added up.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from builder.errors import BudgetError, BuilderError, ClaimError, ConfigError
from builder.format import phases as phase_format
from builder.format.phases import Phase
from builder.runtime.drive import nearest_rank
from builder.units import format_size

SCHEMA = 1
LANES = ("host", "container")


@dataclass(frozen=True)
class ImageFacts:
    """The image that ran. digest: of its manifest; of its configuration with engines that keep no other.

    size: bytes, of what size_note says.
    """

    reference: str
    digest: str
    size: int
    size_note: str


@dataclass(frozen=True)
class HostFacts:
    """The machine that ran it. memory: bytes. gpus: names, empty without one. docker: engine version, "" in place."""

    cores: int
    memory: int
    cpu: str
    system: str
    gpus: tuple[str, ...] = ()
    docker: str = ""


@dataclass(frozen=True)
class Run:
    """One cold start.

    asked: the container (or process) was asked for.  ready: /ready first said yes, seen by a poll every `poll_s` seconds.
    first_token: the first token of the first question asked after ready arrived; None if none came.
    phases: lane "host" as seen from here, lane "container" as the runtime recorded them.
    """

    asked: float
    ready: float
    first_token: float | None
    poll_s: float
    phases: tuple[Phase, ...]

    @property
    def cold_start_s(self) -> float:
        return self.ready - self.asked

    @property
    def first_answer_s(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.asked

    @property
    def unaccounted_s(self) -> float:
        """Seconds between asked and ready that no phase of either lane covers."""
        return phase_format.unaccounted(self.phases, self.asked, self.ready)

    def lane(self, name: str) -> list[Phase]:
        return sorted((p for p in self.phases if p.lane == name), key=lambda p: (p.start, p.end))


@dataclass(frozen=True)
class Answer:
    """The question and what came back; sha256 of the text's UTF-8 bytes, to compare with other runs and machines."""

    prompt: str
    text: str
    sha256: str


@dataclass(frozen=True)
class Check:
    """One claim of the image, tested. found, expected: short texts for people."""

    id: str
    ok: bool
    found: str
    expected: str


@dataclass(frozen=True)
class Level:
    """One load level. Latencies in seconds over the answered requests, by nearest rank; None where none was answered.

    seconds: wall clock of the level.  tokens_per_s: generated tokens over it, all requests together.
    error_samples: some of the different messages.
    """

    concurrency: int
    requests: int
    errors: int
    seconds: float
    ttft_p50: float | None
    ttft_p95: float | None
    ttft_p99: float | None
    total_p50: float | None
    total_p95: float | None
    total_p99: float | None
    tokens_per_s: float
    error_samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class BudgetResult:
    """One limit of verify.budget. unit: "s" or "B"; found and limit are in it."""

    id: str
    ok: bool
    found: float
    limit: float
    unit: str

    @property
    def texts(self) -> tuple[str, str]:
        """found and limit for people."""
        return amounts(self.found, self.limit, self.unit)


@dataclass(frozen=True)
class VerifyReport:
    """Everything one `builder verify` saw.

    created: when it ended, seconds since the epoch.  target: "container" or "in-place".  manifest: the weights' digest.
    notes: what a reader must know to judge the figures (an absent GPU, an unreachable loopback store).
    """

    name: str
    created: float
    target: str
    manifest: str
    host: HostFacts
    runs: tuple[Run, ...]
    answer: Answer
    image: ImageFacts | None = None
    checks: tuple[Check, ...] = ()
    load: tuple[Level, ...] = ()
    budgets: tuple[BudgetResult, ...] = ()
    notes: tuple[str, ...] = ()
    tool: str = ""
    schema: int = field(default=SCHEMA)

    @property
    def ok(self) -> bool:
        return all(c.ok for c in self.checks) and all(b.ok for b in self.budgets)

    @property
    def cold_start_p95(self) -> float:
        return nearest_rank([r.cold_start_s for r in self.runs], 95)

    def to_json(self) -> dict[str, Any]:
        """The JSON form; derived figures stand beside the raw ones, so that a reader needs no arithmetic."""
        out: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for raw, run in zip(out["runs"], self.runs, strict=True):
            raw["cold_start_s"] = run.cold_start_s
            raw["first_answer_s"] = run.first_answer_s
            raw["unaccounted_s"] = run.unaccounted_s
        out["ok"] = self.ok
        out["cold_start_p95_s"] = self.cold_start_p95
        return out

    def raise_for_failures(self) -> None:
        """Nothing if all held; else raises what `failure` returns."""
        if error := self.failure():
            raise error

    def failure(self) -> BuilderError | None:
        """ClaimError with every failed check, else BudgetError with every budget missed, else None."""
        if failed := [c for c in self.checks if not c.ok]:
            lines = "".join(f"\n  {c.id}: expected {c.expected}, found {c.found}" for c in failed)
            return ClaimError(
                f"{self._subject}: {_count(len(failed), len(self.checks), 'check')} failed:{lines}",
                hint="`builder report show` prints the whole report again",
                where={"checks": [c.id for c in failed]},
            )
        if missed := [b for b in self.budgets if not b.ok]:
            lines = "".join(f"\n  {b.id}: {found}, budget {limit}" for b in missed for found, limit in [b.texts])
            return BudgetError(
                f"{self._subject}: {_count(len(missed), len(self.budgets), 'budget')} missed:{lines}",
                hint="the phase table of the report says where the time went",
                where={"budgets": [b.id for b in missed]},
            )
        return None

    @property
    def _subject(self) -> str:
        return self.image.reference if self.image else self.name


def from_json(raw: Any, *, where: str = "report") -> VerifyReport:
    """The report that `to_json` made. Raises ConfigError on another schema version, a missing or a mistyped field."""
    found = raw.get("schema") if isinstance(raw, dict) else None
    if found != SCHEMA:
        raise ConfigError(f"{where}: expected a verify report of schema {SCHEMA}, found {found!r}")
    try:
        return VerifyReport(
            name=str(raw["name"]),
            created=float(raw["created"]),
            target=str(raw["target"]),
            manifest=str(raw["manifest"]),
            host=HostFacts(**{**raw["host"], "gpus": tuple(raw["host"]["gpus"])}),
            runs=tuple(_run(r) for r in raw["runs"]),
            answer=Answer(**raw["answer"]),
            image=ImageFacts(**raw["image"]) if raw["image"] else None,
            checks=tuple(Check(**c) for c in raw["checks"]),
            load=tuple(Level(**{**v, "error_samples": tuple(v["error_samples"])}) for v in raw["load"]),
            budgets=tuple(BudgetResult(**b) for b in raw["budgets"]),
            notes=tuple(str(n) for n in raw["notes"]),
            tool=str(raw["tool"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ConfigError(f"{where}: not a verify report: {type(exc).__name__}: {exc}") from exc


def loads(text: str | bytes, *, where: str = "report") -> VerifyReport:
    """The report in `text`. Raises ConfigError."""
    try:
        raw = json.loads(text)
    except ValueError as exc:
        raise ConfigError(f"{where}: not JSON: {exc}") from exc
    return from_json(raw, where=where)


def dumps(report: VerifyReport) -> str:
    return json.dumps(report.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def amounts(found: float, limit: float, unit: str) -> tuple[str, str]:
    """Figure and limit with their unit; exact where rounding would make a miss look like a hit.

    >>> amounts(1.0004, 1.0, "s"), amounts(2 << 30, 1 << 30, "B")
    (('1.0004 s', '1.0 s'), ('2.00 GiB', '1.00 GiB'))
    """
    show = seconds if unit == "s" else format_size
    texts = show(found), show(limit)
    return texts if texts[0] != texts[1] or found == limit else (f"{found} {unit}", f"{limit} {unit}")


def seconds(value: float | None) -> str:
    """At most three significant digits above a second, whole milliseconds below; polling allows no more.

    >>> seconds(0.0421), seconds(1.234), seconds(61.26), seconds(None)
    ('42 ms', '1.23 s', '61.3 s', '-')
    """
    if value is None:
        return "-"
    if abs(value) < 0.9995:
        return f"{value * 1000:.0f} ms" if abs(value) >= 0.001 or value == 0 else f"{value * 1000:.1f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s" if value < 1000 else f"{value:.0f} s"


def shorten(text: str, limit: int = 80) -> str:
    """One line of at most `limit` characters, quoted; control characters shown, so that no terminal acts on them.

    >>> shorten("Paris.\\n" * 3, 12)
    "'Paris.\\\\nP…'"
    """
    shown = repr(text)
    return shown if len(shown) <= limit else shown[: limit - 2] + "…" + shown[-1]


def _run(raw: dict[str, Any]) -> Run:
    token = raw["first_token"]
    return Run(
        asked=float(raw["asked"]),
        ready=float(raw["ready"]),
        first_token=None if token is None else float(token),
        poll_s=float(raw["poll_s"]),
        phases=tuple(_phase(p) for p in raw["phases"]),
    )


def _phase(raw: dict[str, Any]) -> Phase:
    return Phase(str(raw["phase"]), float(raw["start"]), float(raw["end"]), str(raw["lane"]), dict(raw["detail"]))


def _count(some: int, total: int, noun: str) -> str:
    return f"{some} of {total} {noun}{'' if total == 1 else 's'}"
