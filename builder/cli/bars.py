"""Progress, drawn: live bars on a terminal (rich), quiet lines elsewhere. Always on stderr.

rich: the one library that draws several moving lines without breaking the scroll-back; imported on terminals only,
because off them it would be a cost with no use.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from builder import units
from builder.progress import NoProgress, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID
    from rich.text import Text

Say = Callable[[str], None]
EVERY_S = 5.0  # a quiet line per task at most this often: a CI log stays readable


@contextlib.contextmanager
def make(mode: str) -> Iterator[tuple[Progress, Say]]:
    """mode: auto, plain or none. Yields the progress, and what prints a line to stderr beside it."""
    if mode == "none":
        yield NoProgress(), _echo
    elif mode == "auto" and sys.stderr.isatty():
        with _rich() as progress:
            bars = Bars(progress)
            yield bars, bars.say
    else:
        yield Lines(_echo, time.monotonic), _echo


def _echo(text: str) -> None:
    click.echo(text, err=True)


@dataclass
class _Task:
    title: str
    total: int
    unit: str
    started: float
    done: int = 0
    told: float = 0.0
    noted: str = ""


class Lines:
    """One line when a task has run a while, and one when it ends."""

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._tell = tell
        self._clock = clock
        self._tasks: list[_Task] = []
        self._lock = threading.Lock()

    def add(self, title: str, total: int = 0, unit: str = "B") -> int:
        with self._lock:
            now = self._clock()
            self._tasks.append(_Task(title, total, unit, now, told=now))
            return len(self._tasks) - 1

    def advance(self, task: int, amount: int) -> None:
        with self._lock:
            t = self._tasks[task]
            t.done += amount
            self._maybe(t)

    def note(self, task: int, text: str) -> None:
        with self._lock:
            t = self._tasks[task]
            t.noted = text
            self._maybe(t)

    def done(self, task: int, text: str = "") -> None:
        with self._lock:
            self._tell(_ended(self._tasks[task], text, self._clock()))

    def _maybe(self, t: _Task) -> None:
        now = self._clock()
        if now - t.told >= EVERY_S:
            t.told = now
            of = f"{_amount(t.done, t.unit)} of {_amount(t.total, t.unit)}" if t.total else ""
            self._tell(f"{t.title}: {', '.join(filter(None, (of, t.noted))) or _amount(t.done, t.unit)}")


class Bars:
    """The same on a terminal, moving. A task that ends becomes a line above the bars, so that the record stays in order."""

    def __init__(self, progress: RichProgress) -> None:
        self._progress = progress
        self._tasks: dict[int, _Task] = {}

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def add(self, title: str, total: int = 0, unit: str = "B") -> int:
        task = int(self._progress.add_task(title, total=total or None, unit=unit, note=""))
        self._tasks[task] = _Task(title, total, unit, time.monotonic())
        return task

    def advance(self, task: int, amount: int) -> None:
        self._tasks[task].done += amount
        self._progress.advance(_id(task), amount)

    def note(self, task: int, text: str) -> None:
        self._progress.update(_id(task), note=text[-60:])

    def done(self, task: int, text: str = "") -> None:
        self._progress.remove_task(_id(task))
        mark = ("✗ ", "red") if text == "failed" else ("✓ ", "green")
        self._progress.console.print(_styled(mark, _ended(self._tasks.pop(task), text, time.monotonic())))


def _ended(t: _Task, text: str, now: float) -> str:
    """The line that sums a task up."""
    seconds = now - t.started
    amount = f", {_amount(t.done, t.unit)}" if t.done else ""
    rate = f" at {units.format_size(t.done / seconds)}/s" if t.done and t.unit == "B" and seconds > 0.01 else ""
    return f"{t.title}: {text or 'done'}{amount}{rate} ({units.format_seconds(seconds)})"


def _id(task: int) -> TaskID:
    return task  # type: ignore[return-value]  # rich's TaskID is an int


def _styled(mark: tuple[str, str], text: str) -> Text:
    from rich.text import Text

    return Text.assemble(mark, text)


def _rich() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            if not self_total(task):
                return Text("")
            unit = task.fields["unit"]
            rate = f"  {units.format_size(task.finished_speed or task.speed or 0)}/s" if unit == "B" and task.speed else ""
            return Text(f"{_amount(int(task.completed), unit)} of {_amount(int(task.total or 0), unit)}{rate}", style="cyan")

    def self_total(task: Task) -> bool:
        return bool(task.total and task.total > 1)

    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        Amount(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    return RichProgress(*columns, console=Console(stderr=True), transient=False)


def _amount(n: int, unit: str) -> str:
    return units.format_size(n) if unit == "B" else f"{n:,} {unit}"
