"""`builder lint`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder import __version__, units
from builder.cli.common import Session, file_option, options
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.image.lint import Finding

MAX_BYTES = 4 << 20  # of a Dockerfile
_NAMES = re.compile(r"(?:.*\.)?(?:Dockerfile|Containerfile)(?:\..*)?", re.IGNORECASE)


def _gpus(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """
    >>> _gpus(None, None, "9.0,8.0")
    ('9.0', '8.0')
    """
    found = tuple(part.strip() for part in (value or "").split(",") if part.strip())
    for part in found:
        if not re.fullmatch(r"\d+\.\d", part):
            raise click.BadParameter(f"{part}: expected compute capabilities such as 9.0,8.0")
    return found


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path, allow_dash=True))
@options
@file_option
@click.option("--gpu", "gpus", callback=_gpus, metavar="X.Y,...", help="Target GPUs; default: image.gpu_archs with -f.")
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave a rule out; again for more.")
@click.option("--sarif", "sarif_path", type=click.Path(path_type=Path), help="Also write SARIF here, for code scanning.")
@click.option("--strict", is_flag=True, help="Warnings fail too.")
def command(
    session: Session,
    paths: tuple[Path, ...],
    file: Path | None,
    gpus: tuple[str, ...],
    ignore: tuple[str, ...],
    sarif_path: Path | None,
    strict: bool,
) -> None:
    """Find in Dockerfiles what makes an image with CUDA large, slow to start or unsafe; exit 2 if so.

    PATHS: Dockerfiles, folders to search, or - for standard input. Without: the Dockerfile that builder.yaml renders.
    A comment `# builder lint ignore=RULE` above an instruction silences a rule there.
    """
    from builder.image.lint import lint, sarif

    texts = list(_texts(paths)) if paths else [_rendered(session, file)]
    if not gpus and (file or not paths):
        gpus = session.load(file).spec.image.gpu_archs
    findings = [f for path, text in texts for f in lint(text, path=path, gpu_archs=gpus, ignore=ignore)]
    if sarif_path is not None:
        sarif_path.write_text(json.dumps(sarif(findings, __version__), indent=2) + "\n")
    failing = [f for f in findings if strict or f.severity == "error"]
    error = ConfigError(_what(failing), hint="correct them, or say why not: # builder lint ignore=RULE") if failing else None
    session.conclude(
        {"files": [path for path, _ in texts], "findings": [f.to_json() for f in findings]}, _human(findings, len(texts)), error
    )


def _what(failing: list[Finding]) -> str:
    return f"{units.count(len(failing), 'finding')} in {units.count(len({f.path for f in failing}), 'file')}"


def _human(findings: list[Finding], files: int) -> str:
    if not findings:
        return f"nothing found in {units.count(files, 'file')}"
    return "\n".join(f"{f}\n    why  {f.rule.why}\n    fix  {f.rule.fix}" for f in findings)


def _texts(paths: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    for path in paths:
        if str(path) == "-":
            yield "stdin", sys.stdin.read(MAX_BYTES)
        elif path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and _NAMES.fullmatch(p.name))
            if not found:
                raise ConfigError(f"{path}: no Dockerfile in it", hint="name the file")
            for one in found:
                yield str(one), _read(one)
        else:
            yield str(path), _read(path)


def _read(path: Path) -> str:
    try:
        body = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    if len(body) > MAX_BYTES:
        raise ConfigError(f"{path}: {len(body)} bytes, expected a Dockerfile of at most {MAX_BYTES}")
    try:
        return body.decode()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: byte {exc.start} is not UTF-8, so it is no Dockerfile") from exc


def _rendered(session: Session, file: Path | None) -> tuple[str, str]:
    from builder import pipeline

    loaded = session.load(file)
    return f"{loaded.path} (rendered)", pipeline.render_image(loaded, "")
