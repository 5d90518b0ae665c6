"""Progress of long work. The library reports to this protocol; only the CLI draws it. Null by default."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol


class Progress(Protocol):
    """Thread-safe. A task is one line: `add` announces it, `advance` moves it, `done` closes it."""

    def add(self, title: str, total: int = 0, unit: str = "B") -> int:
        """A new task. total: 0 when unknown; unit: "B" for bytes, else the noun that is counted. Returns its id."""

    def advance(self, task: int, amount: int) -> None: ...

    def note(self, task: int, text: str) -> None:
        """What the task is doing now, in a few words."""

    def done(self, task: int, text: str = "") -> None:
        """The task has ended; text says what came of it."""


class NoProgress:
    """Accepts and forgets."""

    def add(self, title: str, total: int = 0, unit: str = "B") -> int:
        return 0

    def advance(self, task: int, amount: int) -> None: ...

    def note(self, task: int, text: str) -> None: ...

    def done(self, task: int, text: str = "") -> None: ...


class step:
    """`with step(progress, "bake: import images"):` adds a task of unknown length and closes it, also on error."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress = progress
        self.title = title

    def __enter__(self) -> step:
        self.task = self.progress.add(self.title)
        return self

    def note(self, text: str) -> None:
        self.progress.note(self.task, text)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.progress.done(self.task, "failed" if kind else "")
