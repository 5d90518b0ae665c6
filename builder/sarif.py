"""Findings for a code scanner: SARIF 2.1.0 (OASIS), the one form of every lint here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol


class Rule(Protocol):
    """severity: "error" or "warning"; why and fix: one sentence each."""

    @property
    def id(self) -> str: ...
    @property
    def severity(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def fix(self) -> str: ...


class Result(NamedTuple):
    """rule: an id of the rules.  line, column: from 1; column 0 where it is not known."""

    rule: str
    severity: str
    message: str
    path: str
    line: int
    column: int = 0


def document(name: str, version: str, rules: Sequence[Rule], results: Iterable[Result]) -> dict[str, Any]:
    """name: of the tool. All rules are in it, whether or not they found something."""
    described = [
        {
            "id": rule.id,
            "shortDescription": {"text": rule.title},
            "fullDescription": {"text": rule.why},
            "help": {"text": rule.fix},
            "defaultConfiguration": {"level": rule.severity},
        }
        for rule in rules
    ]
    index = {rule.id: (number, rule) for number, rule in enumerate(rules)}
    driver = {"name": name, "semanticVersion": version, "rules": described}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": [_result(one, *index[one.rule]) for one in results]}],
    }


def _result(one: Result, number: int, rule: Rule) -> dict[str, Any]:
    region = {"startLine": one.line} | ({"startColumn": one.column} if one.column else {})
    return {
        "ruleId": one.rule,
        "ruleIndex": number,
        "level": one.severity,
        "message": {"text": f"{one.message}. {rule.why} {rule.fix}"},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": one.path}, "region": region}}],
    }
