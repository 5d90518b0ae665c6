"""The proof of a disk, asked for by `bake disk` and `bake verify`, and how it is shown."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from builder.cli.common import Session

if TYPE_CHECKING:
    from builder.node.verify import Opened, VerifyDisk


def verified(session: Session, path: Path, run: str | None, *, target: str = "", containerds: tuple[Path, ...] = (),
             run_s: float | None = None) -> VerifyDisk:  # fmt: skip
    """The report. Raises ClaimError with every finding."""
    from builder import pipeline
    from builder.node.programs import find
    from builder.node.verify import RUN_S, VerifyPlan

    arguments = tuple(shlex.split(run)) if run is not None else None
    versions = tuple(find(one) for one in containerds)
    plan = VerifyPlan(path, run=arguments, run_s=run_s or RUN_S, target=target, programs=versions)
    return pipeline.prove_volume(plan, progress=session.progress)


def evidence(report: VerifyDisk) -> str:
    """For people: what was checked and what was seen, the disk first, then every containerd."""
    from builder.units import format_seconds

    head = f"{report.path}: sound as {report.target}, checked in {format_seconds(report.seconds)}"
    return "\n".join([head, *_rows(report.checks), *(line for one in report.opened for line in _version(one))])


def _version(one: Opened) -> list[str]:
    from builder.units import format_seconds

    lines = [f"containerd {one.version}, in {format_seconds(one.seconds)}", *_rows(one.checks)]
    for run in one.runs:
        lines.append(f"  ran {shlex.join(run.arguments)} as {run.user} in {format_seconds(run.seconds)}")
    return lines


def _rows(checks: dict[str, str]) -> list[str]:
    width = max((len(name) for name in checks if len(name) <= 20), default=0)
    return [f"  ok  {name.ljust(width)}  {text}" for name, text in checks.items()]
