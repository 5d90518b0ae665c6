"""Runs as Markdown."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Run, median

HEAD = ("tool", "GB/s (min to max)", "CPU s/GB", "server CPU s/GB", "peak MiB", "to best peer", "to limit")


def compared(
    title: str,
    found: Mapping[str, Sequence[Run]],
    size: int,
    *,
    peers: Collection[str],
    limit: str = "",
    absent: Mapping[str, str] | None = None,
) -> str:
    """One row per tool, of medians. size: bytes moved.

    to best peer: the fastest peer's time over the tool's.  to limit: that of the row `limit` over the tool's.  absent: why
    a tool has no row of numbers.
    """
    walls = {name: median(runs, lambda r: r.wall) for name, runs in found.items() if runs}
    best = min((walls[name] for name in peers if name in walls), default=None)
    edge = walls.get(limit)
    rows: list[tuple[str, ...]] = []
    for name, runs in found.items():
        if not runs:
            continue
        slow, fast = max(r.wall for r in runs), min(r.wall for r in runs)
        rows.append(
            (
                name,
                f"{size / walls[name] / 1e9:.2f} ({size / slow / 1e9:.2f} to {size / fast / 1e9:.2f})",
                f"{median(runs, lambda r: r.cpu) / size * 1e9:.2f}",
                f"{median(runs, lambda r: r.server) / size * 1e9:.2f}",
                f"{max(r.rss for r in runs) / 2**20:.0f}",
                f"{best / walls[name]:.2f}" if best else "",
                f"{edge / walls[name]:.2f}" if edge else "",
            )
        )
    rows += [(name, why, *[""] * (len(HEAD) - 2)) for name, why in (absent or {}).items()]
    return plain(title, HEAD, rows)


def plain(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"### {title}", ""] if title else []
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def replace_section(page: Path, topic: str, body: str) -> None:
    """Put `body` in place of the section `## topic` of a Markdown page, or at its end."""
    text = page.read_text() if page.exists() else "# Benchmarks\n"
    section = f"## {topic}\n\n{body.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(topic)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: section + "\n", text, count=1)
    else:
        text += "\n" + section
    page.write_text(text.rstrip() + "\n")
