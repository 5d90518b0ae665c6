"""What every command shares: the output options, and the session that prints by them.

stdout holds the result and nothing else; everything a person reads on the way goes to stderr. JSON mode prints one
object. Off a terminal there are no colours, no bars and no prompts.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from builder.errors import BuilderError
from builder.progress import NoProgress, Progress

if TYPE_CHECKING:
    from builder.config.load import Loaded

P = ParamSpec("P")


def cache_folder(name: str) -> Path | None:
    """Where something is kept from one run to the next, as the XDG Base Directory Specification has it."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(cache) if cache.startswith("/") else Path.home() / ".cache") / "builder" / name
    except RuntimeError:  # no home
        return None


@dataclass
class Session:
    """How this run talks. progress: pass it to the library."""

    format: str = "human"
    quiet: bool = False
    verbose: int = 0
    progress: Progress = field(default_factory=NoProgress)
    tell: Callable[[str], None] = field(default_factory=lambda: functools.partial(click.echo, err=True))

    def say(self, text: str) -> None:
        """One line to stderr; nothing in quiet mode."""
        if not self.quiet:
            self.tell(text)

    def show(self, data: Any, human: str) -> None:
        """The result, to stdout: `data` as one JSON object, or `human`."""
        if self.format == "json":
            click.echo(json.dumps(data))
        elif human:
            click.echo(human)

    def conclude(self, data: dict[str, Any], human: str, error: BuilderError | None) -> None:
        """The result, and then `error` if there is one: in JSON mode both are one object."""
        self.show(data | error.to_json() if error else data, human)
        if error:
            error.shown = True
            raise error

    def load(self, file: Path | None) -> Loaded:
        """The description that -f names, or builder.yaml in the current folder."""
        from builder.config.load import load

        return load(file)


def options(command: Callable[Concatenate[Session, P], None]) -> Callable[P, None]:
    """Add --format, --progress, -q and -v; pass a Session first."""

    @click.option("--format", "format_", type=click.Choice(["human", "json"]), default="human", help="Form of the result.")
    @click.option(
        "--progress", "mode", type=click.Choice(["auto", "plain", "none"]), default="auto", help="auto: bars on a terminal."
    )
    @click.option("-q", "--quiet", is_flag=True, help="Only the result and errors.")
    @click.option("-v", "--verbose", count=True, help="-v: more detail; -vv: tracebacks.")
    @functools.wraps(command)
    def wrapped(format_: str, mode: str, quiet: bool, verbose: int, *args: P.args, **kwargs: P.kwargs) -> None:
        from builder.cli.bars import make

        with make("none" if quiet else mode) as (progress, tell):
            session = Session(format_, quiet, verbose, progress, tell)
            command(session, *args, **kwargs)

    return wrapped  # type: ignore[return-value]  # click calls it with keywords only


def file_option(command: Callable[P, None]) -> Callable[P, None]:
    """Add -f/--file."""
    return click.option(
        "-f", "--file", type=click.Path(path_type=Path), default=None, help="The description; default ./builder.yaml."
    )(command)


def table(rows: list[list[str]], *, right: tuple[int, ...] = ()) -> str:
    """Rows as aligned columns, two spaces between; the first row is the head. right: columns that hold numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
