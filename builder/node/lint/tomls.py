"""TOML to Parts. tomllib keeps no positions, so the lines of keys are found by reading the text once more."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from builder.node.lint.part import Key, Mark, Part, Source
from builder.node.lint.yamls import Unreadable, comments

_TABLE = re.compile(r"\s*\[\[?([^\[\]#]+)\]?\]")
_PAIR = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_NAME = re.compile(r"""[\w:-]+|"[^"]*"|'[^']*'""")


def read(text: str, path: Path, *, first_line: int = 1, column: int = 1, label: str = "") -> Part:
    """The document in `text`. first_line: that of the text in its file. Raises Unreadable for what is not TOML."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        match = re.search(r"\(at line (\d+), column (\d+)\)", str(exc))
        line, at = (int(match[1]), int(match[2])) if match else (len(text.splitlines()), 1)  # "at end of document"
        raise Unreadable(f"not TOML: {str(exc).split(' (at ')[0]}", first_line + line - 1, at) from exc
    except RecursionError as exc:
        raise Unreadable("nested too deeply", first_line) from exc
    marks = {(): Mark(first_line, column)} | _marks(text, first_line)
    return Part(raw, Source(path, marks, label, comments(text, first_line)))


def _marks(text: str, first_line: int) -> dict[Key, Mark]:
    """Of tables and of the keys that begin a line; members of an array of tables share the first one's names."""
    marks: dict[Key, Mark] = {}
    table: Key = ()
    for number, line in enumerate(text.splitlines(), first_line):
        if match := _TABLE.match(line):
            table = _names(match[1])
            marks.setdefault(table, Mark(number, line.index("[") + 1))
        elif match := _PAIR.match(line):
            marks.setdefault((*table, *_names(match[1])), Mark(number, match.start(1) + 1))
    return marks


def _names(dotted: str) -> Key:
    """
    >>> _names('plugins."io.containerd.grpc.v1.cri".containerd')
    ('plugins', 'io.containerd.grpc.v1.cri', 'containerd')
    """
    return tuple(name.strip("\"'") for name in _NAME.findall(dotted))
