"""Many like tasks over one store: where the store itself fails, the rest is not even begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from builder.engines.base import Engine
from builder.errors import BuilderError
from builder.transfer.faults import refused

Task = TypeVar("Task")
Result = TypeVar("Result")


def each(engine: Engine, do: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
    """(task, do(task)) in the order of completion.

    The first BuilderError ends the drawing of tasks; once those under way are done it is raised, with the number of the
    others. So `do` returns what is wrong with its own task, and raises what is wrong with the store.
    """
    errors: list[BuilderError] = []

    def drawn() -> Iterator[Task]:
        for task in tasks:
            if errors:
                return
            yield task

    for task, result in engine.map(do, drawn()):
        if isinstance(result, BuilderError):
            errors.append(result)
        else:
            yield task, result
    if errors:
        raise refused(errors)
