"""YAML and JSON to Parts. Nothing is constructed but text, numbers, truth values, lists and mappings; aliases are counted.

`yaml.compose` keeps the position of every node. Tags that YAML does not know (`!Sub` of CloudFormation) leave their value as
text. Merge keys (`<<`) are resolved, as kubectl does. libyaml does the parsing where PyYAML has it: ten times faster, but it
crashes on text that nests a hundred thousand deep, so such text does not reach it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from builder.node.lint.part import Key, Mark, Part, Source

MAX_VALUES = 200_000  # that the aliases of one file stand for: those of a bomb of ten lines stand for 10^9
MAX_DEPTH = 200
MAX_COLUMN = 1000  # where a line's content begins; block nesting needs a column for each level or two
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "tag:yaml.org,2002:merge"
_KNOWN = ("int", "float", "bool", "null")
_IGNORE = re.compile(r"#\s*builder (?:bake )?lint ignore=([\w,-]+)")


class Unreadable(Exception):
    """line, column: from 1."""

    def __init__(self, problem: str, line: int = 1, column: int = 1) -> None:
        super().__init__(problem)
        self.line, self.column = line, column


def read(text: str, path: Path, *, first_line: int = 1) -> tuple[list[Part], list[Unreadable]]:
    """The documents in `text`, and the keys in it that occur twice. first_line: that of the text in its file.

    Raises Unreadable for what is not YAML, nests more than MAX_DEPTH or whose aliases stand for more than MAX_VALUES.
    """
    silenced = comments(text, first_line)
    twice: list[Unreadable] = []
    parts = []
    count = [0]
    try:
        for root in yaml.compose_all(_within_reach(text), Loader=_LOADER):
            reader = _Reader(count, first_line - 1)
            raw = reader.value(root, ())
            twice += reader.twice
            parts.append(Part(raw, Source(path, reader.marks, _label(raw), silenced)))
    except yaml.YAMLError as exc:
        raise _not_yaml(exc, first_line) from exc
    except RecursionError as exc:
        raise Unreadable("nested too deeply", first_line) from exc
    return parts, twice


def comments(text: str, first_line: int = 1) -> dict[int, frozenset[str]]:
    """line -> rules that a comment on it, or directly above it, switches off."""
    found: dict[int, frozenset[str]] = {}
    above: frozenset[str] = frozenset()
    for number, line in enumerate(text.splitlines(), first_line):
        match = _IGNORE.search(line)
        here = frozenset(match[1].split(",")) if match else frozenset()
        alone = line.lstrip().startswith("#")
        if here | above and not alone:
            found[number] = here | above
        above = (above | here) if alone else frozenset()
    return found


def _within_reach(text: str) -> str:
    """Refuses text that nests so deeply that the parser's own recursion would end the process."""
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > MAX_COLUMN and len(line) - len(line.lstrip(" -?:\t")) > MAX_COLUMN:
            raise Unreadable(f"begins after column {MAX_COLUMN}", number, MAX_COLUMN)
    depth = 0
    for match in re.finditer(r"[\[\]{}]", text):
        depth = depth + 1 if match[0] in "[{" else max(0, depth - 1)
        if depth > MAX_DEPTH * 5:
            raise Unreadable(f"more than {MAX_DEPTH} levels deep", text.count("\n", 0, match.start()) + 1)
    return text


def _label(raw: object) -> str:
    if not isinstance(raw, dict) or not isinstance(raw.get("kind"), str):
        return ""
    metadata = raw.get("metadata")
    name = metadata.get("name") or metadata.get("generateName") if isinstance(metadata, dict) else None
    return f"{raw['kind']}/{name}" if name else str(raw["kind"])


def _not_yaml(exc: yaml.YAMLError, first_line: int) -> Unreadable:
    mark = getattr(exc, "problem_mark", None) or getattr(exc, "context_mark", None)
    line, column = (mark.line, mark.column + 1) if mark else (0, 1)
    problem = getattr(exc, "problem", None) or getattr(exc, "reason", None) or str(exc).splitlines()[0]
    return Unreadable(f"not YAML: {problem}", first_line + line, column)


@dataclass
class _Reader:
    """Composed nodes to plain values. count: of values read again, through an alias, in the whole file. offset: lines above."""

    count: list[int]
    offset: int
    marks: dict[Key, Mark] = field(default_factory=dict)
    twice: list[Unreadable] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def value(self, node: yaml.Node | None, key: Key) -> Any:
        if node is None:
            self.marks[key] = Mark(1 + self.offset, 1)
            return None
        self.count[0] += id(node) in self.seen
        self.seen.add(id(node))
        line, column = node.start_mark.line + 1 + self.offset, node.start_mark.column + 1
        if self.count[0] > MAX_VALUES:
            raise Unreadable(f"aliases that stand for more than {MAX_VALUES} values", line, column)
        if len(key) > MAX_DEPTH:
            raise Unreadable(f"more than {MAX_DEPTH} levels deep", line, column)
        block = isinstance(node, yaml.ScalarNode) and node.style == "|"
        self.marks.setdefault(key, Mark(line, column, line + 1 if block else 0))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*key, number)) for number, child in enumerate(node.value)]
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for merged in self._merged(node, key):
            found = merged | found
        own: set[Any] = set()
        for name, child in node.value:
            if name.tag == _MERGE:
                continue
            text = _scalar(name) if isinstance(name, yaml.ScalarNode) else "?"
            line, column = name.start_mark.line + 1 + self.offset, name.start_mark.column + 1
            if text in own:
                self.twice.append(Unreadable(f"{text!r} occurs twice in one mapping", line, column))
            own.add(text)
            block = isinstance(child, yaml.ScalarNode) and child.style == "|"
            inside = child.start_mark.line + 2 + self.offset if block else 0
            found[text] = self.value(child, (*key, text))
            self.marks[(*key, text)] = Mark(line, column, inside)  # of the key: that is where one looks
        return found

    def _merged(self, node: yaml.MappingNode, key: Key) -> Iterator[dict[Any, Any]]:
        for name, child in node.value:
            if name.tag == _MERGE:
                for one in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    raw = self.value(one, key)
                    yield raw if isinstance(raw, dict) else {}


def _scalar(node: yaml.Node) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind not in _KNOWN:
        return node.value
    constructor = yaml.constructor.SafeConstructor()
    try:
        return constructor.construct_object(node)
    except (ValueError, yaml.YAMLError, KeyError, OverflowError):  # !!int of something that is none
        return node.value
