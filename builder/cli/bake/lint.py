"""`builder bake lint`."""

from __future__ import annotations

from pathlib import Path

import click

from builder.cli.common import Session, options
from builder.errors import ConfigError
from builder.units import count


@click.command("lint")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@options
@click.option("--disk", "disk_path", type=click.Path(path_type=Path), default=None, help="The baked disk, to compare sizes.")
@click.option("--strict", is_flag=True, help="Warnings fail too.")
def command(session: Session, paths: tuple[Path, ...], disk_path: Path | None, strict: bool) -> None:
    """Find in manifests and user data what would make a node ignore, lose or pull again what was baked; exit 2 if so."""
    from builder.node.lint import lint as check

    if disk_path and not disk_path.is_file():
        raise ConfigError(f"{disk_path}: no such file")
    findings = check(list(paths), disk_bytes=disk_path.stat().st_size if disk_path else 0)
    failing = [f for f in findings if strict or f.severity == "error"]
    human = "\n".join(f"{f}\n    {f.hint}" for f in findings) or "nothing found"
    what = f"{count(len(failing), 'finding')} would cost the cache"
    error = ConfigError(what, hint="correct them, and run bake lint again") if failing else None
    session.conclude({"findings": [f.to_json() for f in findings]}, human, error)
