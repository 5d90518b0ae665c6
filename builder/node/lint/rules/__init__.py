"""All rules, in the order of the page that lists them (docs/bake-lint.md)."""

from __future__ import annotations

from collections.abc import Iterator

from builder.node.lint.facts import Facts
from builder.node.lint.rule import Hit, Rule
from builder.node.lint.rules import kubelet, pod, pool, runtime, volume


def _unreadable(facts: Facts) -> Iterator[Hit]:
    for fault in facts.faults:
        yield Hit(fault.part, fault.message, fault.severity, fault.line)


UNREADABLE = Rule(
    "unreadable", "error", "a file that is not what it should be",
    "What cannot be read is not checked, and a node that cannot read its user data starts with defaults or not at all.",
    "Correct it.",
    "YAML 1.2; TOML 1.0; bottlerocket.dev, \"Using user data\"",
    _unreadable,
)  # fmt: skip

RULES: tuple[Rule, ...] = (*volume.RULES, *runtime.RULES, *kubelet.RULES, *pod.RULES, *pool.RULES, UNREADABLE)
