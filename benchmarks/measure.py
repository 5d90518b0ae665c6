"""Whole programs, measured from outside: wall seconds, CPU seconds, peak memory. Medians with the spread beside them."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One run. wall, cpu: seconds; cpu is of the program and its children.  rss: peak bytes of the largest process."""

    wall: float
    cpu: float
    rss: int


def run(command: Sequence[str], env: dict[str, str]) -> Run:
    """Run `command` to its end. Raises with its last words if it fails."""
    start = time.monotonic()
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said = child.stderr.read().decode(errors="replace") if child.stderr else ""
            raise SystemExit(f"{' '.join(command)}: exit {child.returncode}: {said[-500:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def rounds(tools: dict[str, Callable[[], Run]], count: int) -> dict[str, list[Run]]:
    """Every tool in turn, `count` times round after one round that is not counted, so that a drift of the machine hits all."""
    found: dict[str, list[Run]] = {name: [] for name in tools}
    for number in range(count + 1):
        for name, tool in tools.items():
            one = tool()
            if number:
                found[name].append(one)
    return found


def table(title: str, found: dict[str, list[Run]], size: int, peers: set[str]) -> str:
    """Rows of GB/s, CPU seconds per GB and memory; ratio: against the fastest of `peers`."""
    best = min(statistics.median(r.wall for r in found[name]) for name in peers)
    lines = [f"### {title}", "", "| tool | GB/s (min to max) | CPU s/GB | peak MiB | ratio |", "|---|---|---|---|---|"]
    for name, runs in found.items():
        walls = sorted(r.wall for r in runs)
        wall, cpu = statistics.median(walls), statistics.median(r.cpu for r in runs)
        rss = max(r.rss for r in runs) / 2**20
        rate = f"{size / wall / 1e9:.2f} ({size / walls[-1] / 1e9:.2f} to {size / walls[0] / 1e9:.2f})"
        lines.append(f"| {name} | {rate} | {cpu / size * 1e9:.2f} | {rss:.0f} | {best / wall:.2f} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """What this ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, "
        f"Linux {platform.release()}, Python {platform.python_version()}, load average {load:.1f} at the end"
    )


def limit_files() -> None:
    """As many open files as the machine allows: some peers want thousands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
