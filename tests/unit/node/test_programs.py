"""What a private containerd finds on its PATH."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from builder import process
from builder.node.programs import Programs, gunzip


@pytest.fixture
def igzip(tmp_path: Path) -> Path:
    path = tmp_path / "igzip"
    path.write_text("#!/bin/sh\necho igzip was asked: $*\n")
    path.chmod(0o755)
    return path


def test_containerd_finds_igzip_where_it_looks_for_unpigz(tmp_path: Path, igzip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "which", lambda name: igzip if name == "igzip" else Path("/usr/bin", name))
    folder = tmp_path / "bin"
    first = gunzip(folder)
    assert gunzip(folder) == first  # made again, after a killed run
    words = Programs(tmp_path / "containerd", tmp_path / "ctr", "1.7.24").with_path(*first)
    said = subprocess.run([*words, "unpigz", "-d", "-c"], capture_output=True, text=True, check=True).stdout
    assert said == "igzip was asked: -d -c\n"
    assert words[1].split(os.pathsep)[1] == str(tmp_path)  # the shim of this build comes before others


def test_without_igzip_nothing_is_put_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "which", lambda name: None)
    assert gunzip(tmp_path / "bin") == []
    assert not (tmp_path / "bin").exists()
