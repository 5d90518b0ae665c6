"""The proof of a disk, asked for by `bake disk` and `bake verify`, and how it is shown."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from builder.cli.common import Session

if TYPE_CHECKING:
    from builder.node.verify import VerifyDisk


def verified(session: Session, path: Path, run: str | None) -> VerifyDisk:
    from builder import pipeline
    from builder.node.verify import VerifyPlan

    arguments = tuple(shlex.split(run)) if run is not None else None
    return pipeline.prove_volume(VerifyPlan(path, run=arguments), progress=session.progress)


def evidence(report: VerifyDisk) -> str:
    from builder.units import format_seconds

    lines = [f"verified with containerd {report.containerd} in {format_seconds(report.seconds)}"]
    lines += [f"  ok  {name}: {text}" for name, text in report.checks.items()]
    for run in report.runs:
        lines.append(f"  {shlex.join(run.arguments)} as {run.user} in {format_seconds(run.seconds)}, no pull")
    return "\n".join(lines)
