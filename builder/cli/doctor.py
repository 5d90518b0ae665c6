"""`builder doctor`."""

from __future__ import annotations

import click

from builder import doctor
from builder.cli.common import Session, options
from builder.errors import CapabilityError


@click.command()
@options
@click.option("--for", "work", type=click.Choice(doctor.WORK), default=None, help="Fail unless this work is possible.")
def command(session: Session, work: str | None) -> None:
    """Say what this machine can do, and what to install.

    Exits 4 if --for names work that is not possible here.
    """
    findings = doctor.examine()
    width = max(len(f.name) for f in findings)
    lines = []
    for f in findings:
        mark = click.style("ok  ", fg="green") if f.ok else click.style("none", fg="red" if f.work else "yellow")
        lines.append(f"{mark}  {f.name.ljust(width)}  {f.found}" + (f"\n{' ' * (width + 8)}-> {f.hint}" if f.hint else ""))
    session.show({"findings": [f.to_json() for f in findings]}, "\n".join(lines))
    if work and (bad := [f for f in findings if not f.ok and work in f.work]):
        raise CapabilityError(f"{work} is not possible here: missing {', '.join(f.name for f in bad)}", hint=bad[0].hint)
