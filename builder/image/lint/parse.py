"""A Dockerfile as stages of instructions, with the lines they stand on. Nothing is run, no variable is taken from outside.

Follows the Dockerfile reference (docs.docker.com/reference/dockerfile): parser directives, line continuations with comments and
blank lines in between, heredocs, flags, JSON form, ONBUILD, variables of ARG and ENV. The parsers on PyPI know no heredocs
(dockerfile-parse 2) or need a Go toolchain (dockerfile 3).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from builder.errors import ConfigError

_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$")
_IGNORE = re.compile(r"#\s*builder lint ignore=([\w,\s-]+)")
_HEREDOC = re.compile(r"<<(-?)(?:\"([^\"\s]+)\"|'([^'\s]+)'|([A-Za-z_][\w.]*))")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?(?:\s+|$)")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::([-+])([^}]*))?\})")
_KEYWORDS = (
    "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL MAINTAINER ONBUILD RUN SHELL STOPSIGNAL USER VOLUME WORKDIR"
)
KEYWORDS = frozenset(_KEYWORDS.split())


class Line(NamedTuple):
    """number: from 1."""

    number: int
    text: str


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    keyword: upper case; of ONBUILD the one that it defers.  value: what follows the flags, continuations joined by a space.
    flags: in order, the value "" where there is none.  argv: of the JSON form, else None.  heredocs: their bodies.
    lines: as they stand in the file.  ignored: rules that a comment above switches off.
    """

    keyword: str
    value: str
    flags: tuple[tuple[str, str], ...] = ()
    argv: tuple[str, ...] | None = None
    heredocs: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    ignored: frozenset[str] = frozenset()

    @property
    def line(self) -> int:
        return self.lines[0].number

    @property
    def text(self) -> str:
        """All that a shell or a copy is given: the value and the heredocs."""
        return "\n".join((self.value, *self.heredocs))

    def flag(self, name: str) -> str:
        return next((value for key, value in self.flags if key == name), "")

    def line_of(self, pattern: re.Pattern[str]) -> int:
        """The line on which `pattern` is found; the first one where it runs over several."""
        return next((line.number for line in self.lines if pattern.search(line.text)), self.line)

    def words(self) -> list[str]:
        """The arguments: of the JSON form, or split as a shell does."""
        if self.argv is not None:
            return list(self.argv)
        try:
            return shlex.split(self.value)
        except ValueError:  # an apostrophe in a heredoc's command line
            return self.value.split()

    def pairs(self) -> dict[str, str]:
        """What ENV, ARG and LABEL set; "" for an ARG without default."""
        words = self.words()
        if self.keyword == "ENV" and words and "=" not in words[0]:  # ENV key value with spaces
            return {words[0]: self.value.split(None, 1)[1] if len(words) > 1 else ""}
        return {key: value for key, _, value in (word.partition("=") for word in words)}


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows. image: with the ARGs before the first FROM put in.  base: index of the stage it is built
    on, or None.
    """

    index: int
    name: str
    image: str
    base: int | None
    instructions: tuple[Instruction, ...] = ()

    @property
    def line(self) -> int:
        return self.instructions[0].line


@dataclass(frozen=True)
class Dockerfile:
    """directives: of the parser, lower-case names.  globals: ARGs before the first FROM."""

    stages: tuple[Stage, ...]
    globals: tuple[Instruction, ...] = ()
    directives: Mapping[str, str] = field(default_factory=dict)

    @property
    def final(self) -> Stage:
        return self.stages[-1]

    def chain(self, stage: Stage | None = None) -> list[Stage]:
        """The stages that an image is made of, its own (the final one, by default) last."""
        found = [stage or self.final]
        while (base := found[0].base) is not None:
            found.insert(0, self.stages[base])
        return found

    def stage(self, name: str) -> Stage | None:
        """By name or number, as COPY --from says it."""
        if name.isdecimal():
            return self.stages[int(name)] if int(name) < len(self.stages) else None
        return next((s for s in self.stages if s.name and s.name == name.lower()), None)


def parse(text: str, *, at: str) -> Dockerfile:
    """at: for messages. Raises ConfigError for an unknown instruction, one before FROM, an open heredoc or line, no FROM."""
    lines = [Line(n, line) for n, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1)]
    directives = _directives(lines)
    before: list[Instruction] = []
    stages: list[Stage] = []
    for one in _instructions(lines, directives.get("escape", "\\"), at):
        if one.keyword == "FROM":
            stages.append(_stage(one, before, stages, at))
        elif stages:
            stages[-1] = _with(stages[-1], one)
        elif one.keyword == "ARG":
            before.append(one)
        else:
            raise ConfigError(f"{at}:{one.line}: {one.keyword} before the first FROM")
    if not stages:
        raise ConfigError(f"{at}: no FROM, so it is no Dockerfile")
    return Dockerfile(tuple(stages), tuple(before), directives)


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Variables put in, with their defaults; one that is not known stays as it is.

    >>> substitute("cuda:${V:-12}-${K}", {"K": "devel"})
    'cuda:12-devel'
    """

    def value(match: re.Match[str]) -> str:
        known = values.get(match[1] or match[2])
        if match[3] == "-":
            return known or match[4]
        if match[3] == "+":
            return match[4] if known else ""
        return match[0] if known is None else known

    return _VARIABLE.sub(value, text)


def variables(instructions: Iterable[Instruction]) -> dict[str, str]:
    """What the ARGs and ENVs among them set, in order, each seeing those before it; an ARG without default sets nothing."""
    known: dict[str, str] = {}
    for one in instructions:
        if one.keyword in ("ARG", "ENV"):
            before = dict(known)
            known |= {key: substitute(value, before) for key, value in one.pairs().items() if value or one.keyword == "ENV"}
    return known


def _directives(lines: list[Line]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        match = _DIRECTIVE.match(line.text)
        if not match or match[1].lower() in found:
            break
        found[match[1].lower()] = match[2]
    return found


def _instructions(lines: list[Line], escape: str, at: str) -> Iterator[Instruction]:
    position, ignored = 0, frozenset[str]()
    while position < len(lines):
        text = lines[position].text.strip()
        if not text or text.startswith("#"):
            match = _IGNORE.match(text)
            ignored = (
                ignored | {r.strip() for r in match[1].split(",") if r.strip()} if match else ignored if text else frozenset()
            )
            position += 1
            continue
        taken, joined = _logical(lines, position, escape, at)
        position += len(taken)
        keyword, _, rest = joined.partition(" ")
        if keyword.upper() == "ONBUILD":
            keyword, _, rest = rest.strip().partition(" ")
        if keyword.upper() not in KEYWORDS:
            raise ConfigError(f"{at}:{taken[0].number}: unknown instruction {keyword[:40]!r}")
        flags, value = _flags(rest.strip())
        bodies, more = _heredocs(value, lines, position, at) if keyword.upper() in ("RUN", "COPY", "ADD") else ([], [])
        position += len(more)
        yield Instruction(keyword.upper(), value, flags, _json(value), tuple(bodies), (*taken, *more), ignored)
        ignored = frozenset()


def _logical(lines: list[Line], position: int, escape: str, at: str) -> tuple[list[Line], str]:
    """The physical lines of one instruction, and their text in one. Comments and blank lines in between are skipped."""
    taken: list[Line] = []
    parts: list[str] = []
    for line in lines[position:]:
        taken.append(line)
        text = line.text.rstrip()
        if parts and (not text.strip() or text.lstrip().startswith("#")):
            continue
        if not text.endswith(escape):
            return taken, " ".join(part.strip() for part in [*parts, text] if part.strip())
        parts.append(text[: -len(escape)])
    raise ConfigError(f"{at}:{lines[position].number}: the file ends within an instruction")


def _flags(rest: str) -> tuple[tuple[tuple[str, str], ...], str]:
    flags = []
    while match := _FLAG.match(rest):
        flags.append((match[1], match[2] or ""))
        rest = rest[match.end() :]
    return tuple(flags), rest.strip()


def _json(value: str) -> tuple[str, ...] | None:
    if not value.startswith("["):
        return None
    try:
        found = json.loads(value)
    except ValueError:
        return None
    return tuple(found) if isinstance(found, list) and all(isinstance(word, str) for word in found) else None


def _heredocs(value: str, lines: list[Line], position: int, at: str) -> tuple[list[str], list[Line]]:
    bodies: list[str] = []
    taken: list[Line] = []
    for match in _HEREDOC.finditer(value):
        end, body = match[2] or match[3] or match[4], []
        while True:
            if position + len(taken) >= len(lines):
                raise ConfigError(f"{at}:{lines[-1].number}: the file ends within the heredoc {end}")
            line = lines[position + len(taken)]
            taken.append(line)
            if (line.text.lstrip("\t") if match[1] else line.text) == end:
                break
            body.append(line.text)
        bodies.append("\n".join(body))
    return bodies, taken


def _stage(one: Instruction, before: list[Instruction], stages: list[Stage], at: str) -> Stage:
    words = one.words()
    if not words or (len(words) > 1 and (len(words) != 3 or words[1].upper() != "AS")):
        raise ConfigError(f"{at}:{one.line}: expected FROM image [AS name]")
    image = substitute(words[0], variables(before))
    name = words[2].lower() if len(words) == 3 else ""
    base = next((s.index for s in reversed(stages) if s.name and s.name == image.lower()), None)
    return Stage(len(stages), name, image, base, (one,))


def _with(stage: Stage, one: Instruction) -> Stage:
    return Stage(stage.index, stage.name, stage.image, stage.base, (*stage.instructions, one))
