from __future__ import annotations

from builder.cli.bars import EVERY_S, Lines


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_are_few_and_the_last_one_sums_up() -> None:
    said: list[str] = []
    clock = Clock()
    lines = Lines(said.append, clock)
    task = lines.add("push", 100 << 20)
    for _ in range(100):
        clock.now += EVERY_S / 40
        lines.advance(task, 1 << 20)
    lines.done(task)
    assert said == [
        "push: 40.0 MiB of 100 MiB",
        "push: 80.0 MiB of 100 MiB",
        "push: done, 100 MiB at 8.00 MiB/s (12.5 s)",
    ]


def test_a_task_without_a_total_tells_its_note() -> None:
    said: list[str] = []
    clock = Clock()
    lines = Lines(said.append, clock)
    task = lines.add("build")
    clock.now += EVERY_S
    lines.note(task, "wheels")
    lines.done(task, "failed")
    assert said == ["build: wheels", "build: failed (5.0 s)"]
