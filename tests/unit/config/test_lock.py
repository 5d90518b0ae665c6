from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.config import lock
from builder.errors import ConfigError


def test_a_section_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "builder.lock"
    lock.update(path, "weights", {"manifest": "sha256:1"})
    lock.update(path, "image", {"digest": "sha256:2"})
    lock.update(path, "weights", {"manifest": "sha256:3"})
    assert lock.section(path, "weights") == {"manifest": "sha256:3"}
    assert lock.section(path, "image") == {"digest": "sha256:2"}
    assert [p.name for p in tmp_path.iterdir()] == ["builder.lock"]


def test_no_file_is_an_empty_lock(tmp_path: Path) -> None:
    assert lock.section(tmp_path / "builder.lock", "weights") == {}


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"version": 99})])
def test_a_damaged_or_newer_lock_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "builder.lock"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"builder\.lock"):
        lock.update(path, "image", {})
    assert path.read_text() == text
