"""`builder bake lint`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder import __version__
from builder.cli.common import Session, options
from builder.errors import ConfigError
from builder.units import count

if TYPE_CHECKING:
    from builder.node.lint import Finding, Report

MAX_STDIN = 8 << 20


@click.command("lint")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@options
@click.option(
    "--disk",
    "disk_path",
    type=click.Path(path_type=Path),
    help="The baked disk, or its record DISK.json: what to compare with.",
)
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave a rule out; again for more.")
@click.option("--sarif", "sarif_path", type=click.Path(path_type=Path), help="Also write SARIF here, for code scanning.")
@click.option("--strict", is_flag=True, help="Warnings fail too.")
def command(session: Session, paths: tuple[Path, ...], disk_path: Path | None, ignore: tuple[str, ...],
            sarif_path: Path | None, strict: bool) -> None:  # fmt: skip
    """Find in manifests and user data what would make a node ignore, lose or pull again what was baked; exit 2 if so.

    PATHS: files, folders to search, or - for standard input (helm template CHART | builder bake lint -). Read are Kubernetes
    objects with pods, Karpenter's and eksctl's, launch templates, user data, kubelet's and containerd's configuration; not
    Terraform.

    A comment `# builder lint ignore=RULE` on a line, or above it, silences a rule there.
    """
    from builder.node import lint

    stdin = sys.stdin.buffer.read(MAX_STDIN + 1) if Path("-") in paths else None
    disk = lint.open_disk(disk_path) if disk_path else None
    report = lint.run(list(paths), disk=disk, ignore=ignore, stdin=stdin)
    if sarif_path is not None:
        _write(sarif_path, json.dumps(lint.sarif(report.findings, __version__), indent=2) + "\n")
    failing = [f for f in report.findings if strict or f.severity == "error"]
    what = f"{count(len(failing), 'finding')} would cost the cache"
    error = ConfigError(what, hint="correct them, or say why not: # builder lint ignore=RULE") if failing else None
    files = [str(path) for path in report.files]
    data = {"files": files, "understood": report.understood, "findings": [f.to_json() for f in report.findings]}
    session.conclude(data, _human(report), error)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written: {exc.strerror}") from exc


def _human(report: Report) -> str:
    if report.findings:
        return "\n".join(map(_one, report.findings))
    read = count(len(report.files), "file")
    if not report.understood:
        return f"nothing checked: no node, pod or user data in {read}"
    return f"nothing found in {read}"


def _one(finding: Finding) -> str:
    return f"{finding}\n    why  {finding.why}\n    fix  {finding.fix}"
