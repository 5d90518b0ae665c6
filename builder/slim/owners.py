"""Which installed package a file belongs to, by the RECORD of each dist-info beside it."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path


class Owners:
    """Asks for many files; each folder of packages is read once."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, str]] = {}
        self._metadata: dict[str, str] = {}

    def of(self, path: Path) -> tuple[str, str]:
        """(package, its METADATA). path: absolute, without links. ("", "") where no RECORD of a folder above lists the file.

        Names are as the index compares them: lower case, with hyphens (PEP 503).
        """
        for folder in path.parents:
            package = self._read(folder).get(str(path), "")
            if package:
                return package, self._metadata[package]
        return "", ""

    def _read(self, folder: Path) -> dict[str, str]:
        if folder not in self._folders:
            owner: dict[str, str] = {}
            for info in sorted(folder.glob("*.dist-info")):
                name = re.sub(r"[-_.]+", "-", info.name[: -len(".dist-info")].rsplit("-", 1)[0]).lower()
                rows = _text(info / "RECORD").splitlines()
                owner.update((os.path.normpath(folder / row[0]), name) for row in csv.reader(rows) if row)
                self._metadata[name] = _text(info / "METADATA")
            self._folders[folder] = owner
        return self._folders[folder]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
