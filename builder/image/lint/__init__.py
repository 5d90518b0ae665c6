"""Faults of a Dockerfile with CUDA in it, found by reading it: `rules` says which, `parse` how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from builder import sarif as sarif_form
from builder.errors import ConfigError
from builder.image.lint.parse import Dockerfile, parse
from builder.image.lint.rules import RULES, Rule
from builder.units import count

__all__ = ["RULES", "Finding", "Rule", "lint", "require_clean", "sarif"]


@dataclass(frozen=True)
class Finding:
    """line: from 1.  severity: "error" or "warning"."""

    path: str
    line: int
    rule: Rule
    message: str

    @property
    def severity(self) -> str:
        return self.rule.severity

    def to_json(self) -> dict[str, Any]:
        rule = self.rule
        said = {"rule": rule.id, "severity": rule.severity, "message": self.message, "why": rule.why, "fix": rule.fix}
        return {"path": self.path, "line": self.line, **said}

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.severity}: {self.message} [{self.rule.id}]"


def lint(text: str, *, path: str, gpu_archs: Sequence[str] = (), ignore: Sequence[str] = ()) -> list[Finding]:
    """Findings in the text of a Dockerfile, by line. path: for the findings.

    gpu_archs: compute capabilities that it is meant for, such as 9.0, for rule arch-list.  ignore: rules left out. A comment
    `# builder lint ignore=RULE` directly above an instruction leaves them out there.
    Raises ConfigError where it is no Dockerfile, and for an unknown rule in `ignore`.
    """
    known = {rule.id for rule in RULES}
    if unknown := sorted(set(ignore) - known):
        raise ConfigError(f"--ignore {unknown[0]}: no such rule", hint=f"expected one of {', '.join(sorted(known))}")
    file = parse(text, at=path)
    silent = _silenced(file)
    found = [
        Finding(path, hit.line, rule, hit.message)
        for rule in RULES
        if rule.id not in ignore
        for hit in rule.check(file, tuple(gpu_archs))
        if rule.id not in silent.get(hit.line, ())
    ]
    return sorted(found, key=lambda f: (f.line, f.rule.id))


def require_clean(findings: Sequence[Finding]) -> None:
    """Raises ConfigError that names every finding that stops a build."""
    failing = [f for f in findings if f.severity == "error"]
    if failing:
        raise ConfigError(
            "\n  ".join([f"the Dockerfile has {count(len(failing), 'fault')}:", *(f"{f}. {f.rule.fix}" for f in failing)]),
            hint="correct builder.yaml; `builder lint` shows them all",
            where={"findings": [f.to_json() for f in failing]},
        )


def _silenced(file: Dockerfile) -> dict[int, frozenset[str]]:
    """line -> rules that a comment above its instruction switches off."""
    everything = [*file.globals, *(one for stage in file.stages for one in stage.instructions)]
    return {line.number: one.ignored for one in everything if one.ignored for line in one.lines}


def sarif(findings: Sequence[Finding], version: str) -> dict[str, Any]:
    """The findings for a code scanner."""
    results = [sarif_form.Result(f.rule.id, f.severity, f.message, f.path, f.line) for f in findings]
    return sarif_form.document("builder lint", version, RULES, results)
