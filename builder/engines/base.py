"""Where split work runs. Push, verify and repair hand their chunks to an engine and know nothing of threads or machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from builder.errors import BuilderError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Engine(Protocol):
    """concurrency: tasks at the same time."""

    @property
    def concurrency(self) -> int: ...

    def map(self, do: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result | BuilderError]]:
        """(task, what `do` returned or the BuilderError it raised), in the order of completion.

        `tasks` is drawn lazily: at most `concurrency` tasks are drawn and not yet yielded, so that a task may own memory.
        A BuilderError of one task does not stop the others. Any other exception, and closing the iterator, stops drawing
        and waits for the tasks under way.
        """


class Cluster(Engine):
    """An engine whose tasks run on other machines: `do`, tasks and results are pickled, and no memory is shared.

    So a task names bytes and does not hold them: work that hands buffers to its tasks goes another way on a Cluster.
    threads: how many chunks one task works on at a time.
    """

    threads: int
