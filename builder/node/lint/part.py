"""A value out of a configuration file, together with where it stands: every finding names file, line and column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Key = tuple[str | int, ...]


class Mark(NamedTuple):
    """Where a value stands, from 1.  text_line: of the first line of a block text (`|`), 0 for everything else."""

    line: int
    column: int
    text_line: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """What one document of a file was read from.  label: such as EC2NodeClass/gpu.  marks: by key, at least the root's."""

    path: Path
    marks: Mapping[Key, Mark]
    label: str = ""
    silenced: Mapping[int, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """raw: plain dicts, lists and scalars; None where nothing stands at `key`, whose line is then that of what surrounds it."""

    raw: Any
    source: Source
    key: Key = ()

    def at(self, *keys: str | int) -> Part:
        """What stands below; a Part of None if nothing does."""
        raw = self.raw
        for key in keys:
            if isinstance(raw, dict):
                raw = raw.get(key)
            elif isinstance(raw, list) and isinstance(key, int) and key < len(raw):
                raw = raw[key]
            else:
                raw = None
        return Part(raw, self.source, (*self.key, *keys))

    def each(self) -> Iterator[Part]:
        """The members of a list, or the values of a mapping; nothing for a scalar."""
        if isinstance(self.raw, dict):
            for key in self.raw:
                yield self.at(key)
        elif isinstance(self.raw, list):
            for number in range(len(self.raw)):
                yield self.at(number)

    def walk(self) -> Iterator[Part]:
        """This part and everything below it."""
        waiting = [self]
        while waiting:
            part = waiting.pop()
            yield part
            waiting += reversed(list(part.each()))

    @property
    def there(self) -> bool:
        return self.raw is not None

    @property
    def text(self) -> str:
        """The value if it is text, else ""."""
        return self.raw if isinstance(self.raw, str) else ""

    @property
    def number(self) -> float | None:
        """The value as a number: text such as "85" too, as Bottlerocket's settings have it. None if it is none."""
        if isinstance(self.raw, bool):
            return None
        try:
            found = float(self.raw) if isinstance(self.raw, (int, float, str)) else None
        except (ValueError, OverflowError):
            return None
        return found if found is not None and abs(found) < 1e300 else None

    @property
    def mark(self) -> Mark:
        for end in range(len(self.key), -1, -1):
            if mark := self.source.marks.get(self.key[:end]):
                return mark
        return Mark(1, 1)

    def line_of(self, number: int) -> int:
        """The line in the file of line `number`, from 0, of this text."""
        mark = self.mark
        return mark.text_line + number if mark.text_line else mark.line

    @property
    def where(self) -> str:
        """`EC2NodeClass/gpu: spec.blockDeviceMappings[1].ebs`"""
        dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.key).lstrip(".")
        return ": ".join(filter(None, (self.source.label, dotted)))
