"""Seconds per named step, shown as it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from builder.progress import Progress


@dataclass(frozen=True, slots=True)
class Task:
    """The line of one step."""

    progress: Progress
    number: int

    def note(self, text: str) -> None:
        """What it is doing now."""
        self.progress.note(self.number, text)

    def advance(self, amount: int) -> None:
        """That many bytes more."""
        self.progress.advance(self.number, amount)


class Stopwatch:
    """seconds: of each step so far, by name."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, total: int = 0) -> Iterator[Task]:
        """A step. total: its bytes, 0 where they are not known. It is closed on error too."""
        begun, task = time.monotonic(), self.progress.add(f"bake: {name}", total)
        try:
            yield Task(self.progress, task)
        except BaseException:
            self.progress.done(task, "failed")
            raise
        self.progress.done(task)
        self.seconds[name] = time.monotonic() - begun
