"""A rule, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from builder.node.lint.facts import Facts
from builder.node.lint.part import Part


class Hit(NamedTuple):
    """severity: where it is not the rule's.  line: of a text inside `part`, where it is not the part's."""

    part: Part
    message: str
    severity: str = ""
    line: int = 0


@dataclass(frozen=True)
class Rule:
    """severity: "error" breaks the cache, "warning" may.  why, fix: one sentence each.  source: who says so.

    formerly: ids that it had, which `--ignore` and comments still take.
    """

    id: str
    severity: str
    title: str
    why: str
    fix: str
    source: str
    check: Callable[[Facts], Iterator[Hit]]
    formerly: tuple[str, ...] = ()
