"""What long work reports to: the part of `builder.progress.Progress` that ships inside images, and a silent one."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Thread-safe; any `builder.progress.Progress` is one."""

    def add(self, title: str, total: int = 0, unit: str = "B") -> int: ...

    def advance(self, task: int, amount: int) -> None: ...

    def note(self, task: int, text: str) -> None: ...

    def done(self, task: int, text: str = "") -> None: ...


class Silent:
    """Accepts and forgets."""

    def add(self, title: str, total: int = 0, unit: str = "B") -> int:
        return 0

    def advance(self, task: int, amount: int) -> None: ...

    def note(self, task: int, text: str) -> None: ...

    def done(self, task: int, text: str = "") -> None: ...
