"""report.json and its pages on disk: each is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from builder.errors import CapabilityError, ConfigError
from builder.verify import page
from builder.verify.report import VerifyReport, dumps, loads


@dataclass(frozen=True)
class Written:
    """Where a report lies. json: None where only the pages were written."""

    html: Path
    markdown: Path
    json: Path | None = None


def read(path: Path) -> VerifyReport:
    """The report in `path`, or in its report.json if it is a folder. Raises ConfigError."""
    path = path / "report.json" if path.is_dir() else path
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}", hint="`builder verify` writes one") from exc
    return loads(text, where=str(path))


def write(report: VerifyReport, folder: Path) -> Written:
    """report.json, report.md and report.html in `folder`, which is made. Raises CapabilityError when it cannot be written."""
    data = _put(folder / "report.json", dumps(report))
    pages = write_pages(report, folder, "report")
    return Written(pages.html, pages.markdown, data)


def write_pages(report: VerifyReport, folder: Path, stem: str) -> Written:
    """<stem>.md and <stem>.html in `folder`."""
    markdown = _put(folder / f"{stem}.md", page.markdown(report))
    return Written(_put(folder / f"{stem}.html", page.html(report)), markdown)


def _put(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8") as part:
            part.write(text)
            part.flush()
            os.fsync(part.fileno())
        Path(part.name).chmod(0o644)
        Path(part.name).replace(path)
    except OSError as exc:
        raise CapabilityError(f"{path}: cannot be written: {exc.strerror}", hint="choose another folder with --out") from exc
    return path
