"""What would make a node ignore, lose or pull again what was baked. Files are read, nothing is contacted.

`files` reads, `objects`, `machines` and `userdata` understand, `rules` say what is wrong and why: docs/bake-lint.md lists them.
Terraform is not read: lint the user data and manifests that it renders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import sarif as sarif_form
from builder.errors import ConfigError, printable
from builder.node.lint import files
from builder.node.lint.disk import Disk, open_disk
from builder.node.lint.facts import Facts
from builder.node.lint.rule import Hit, Rule
from builder.node.lint.rules import RULES

__all__ = ["RULES", "Disk", "Finding", "Report", "Rule", "lint", "open_disk", "run", "sarif"]


@dataclass(frozen=True, slots=True)
class Finding:
    """line, column: from 1.  where: object and field, "" in a file without objects.  rule: its id.

    severity: "error" breaks the cache, "warning" may.
    """

    path: Path
    line: int
    column: int
    where: str
    rule: str
    severity: str
    message: str
    why: str
    fix: str

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("line", "column", "where", "rule", "severity", "message", "why", "fix")}
        return {"path": str(self.path), **plain}

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return printable(f"{self.path}:{self.line}:{self.column}: {where}{self.severity}: {self.message} [{self.rule}]")


@dataclass(frozen=True, slots=True)
class Report:
    """files: read, in order.  understood: how many things in them concern nodes: 0 says that nothing was checked."""

    files: tuple[Path, ...]
    understood: int
    findings: tuple[Finding, ...]


def lint(paths: list[Path], *, disk_bytes: int = 0, disk: Disk | None = None, ignore: Sequence[str] = ()) -> list[Finding]:
    """The findings of `run`. disk_bytes: size of the disk, where nothing else is known of it."""
    return list(run(paths, disk=disk or Disk(disk_bytes), ignore=ignore).findings)


def run(paths: list[Path], *, disk: Disk | None = None, ignore: Sequence[str] = (), stdin: bytes | None = None) -> Report:
    """Findings in the files among `paths`, folders searched; by path and line. All files are judged together.

    disk: what was baked, for the rules that compare.  ignore: rules left out.  stdin: what `-` stands for.  A comment
    `# builder lint ignore=RULE` on a line, or directly above it, leaves a rule out there.
    Raises ConfigError for a path that is not there, and for an unknown rule in `ignore`. Nothing else: what cannot be read is a
    finding.
    """
    left_out = _known(ignore)
    facts = Facts(disk or Disk())
    read = []
    for path, in_folder in _named(paths, stdin):
        if path not in read:
            read.append(path)
            files.collect(facts, path, in_folder=in_folder, body=stdin if path == files.STDIN else None)
    found = {
        _finding(rule, hit) for rule in RULES if rule.id not in left_out for hit in rule.check(facts) if not _silent(rule, hit)
    }
    order = {path: number for number, path in enumerate(read)}
    ranked = sorted(found, key=lambda f: (order[f.path], f.line, f.column, f.severity, f.rule, f.message))
    return Report(tuple(read), facts.understood, tuple(ranked))


def sarif(findings: Sequence[Finding], version: str) -> dict[str, Any]:
    """The findings for a code scanner."""
    results = [sarif_form.Result(f.rule, f.severity, printable(f.message), str(f.path), f.line, f.column) for f in findings]
    return sarif_form.document("builder bake lint", version, RULES, results)


def _named(paths: list[Path], stdin: bytes | None) -> list[tuple[Path, bool]]:
    rest = [path for path in paths if path != files.STDIN]
    return [*([(files.STDIN, False)] if stdin is not None else []), *files.find(rest)]


def _known(ignore: Sequence[str]) -> set[str]:
    names = {name: rule.id for rule in RULES for name in (rule.id, *rule.formerly)}
    if unknown := sorted(set(ignore) - names.keys()):
        raise ConfigError(f"--ignore {unknown[0]}: no such rule", hint=f"expected one of {', '.join(r.id for r in RULES)}")
    return {names[name] for name in ignore}


def _silent(rule: Rule, hit: Hit) -> bool:
    off = hit.part.source.silenced.get(hit.line or hit.part.mark.line, frozenset())
    return bool(off & {rule.id, *rule.formerly})


def _finding(rule: Rule, hit: Hit) -> Finding:
    part, mark = hit.part, hit.part.mark
    line, column = (hit.line, mark.column if hit.line == mark.line else 1) if hit.line else (mark.line, mark.column)
    severity = hit.severity or rule.severity
    return Finding(part.source.path, line, column, part.where, rule.id, severity, hit.message, rule.why, rule.fix)
