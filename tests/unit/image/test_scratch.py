"""Where large temporary files go, and what is left of killed runs."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from builder.image import scratch


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_users_tmpdir_is_respected(root: Path) -> None:
    with scratch.folder() as work:
        assert work.parent == root
        assert work.stat().st_mode & 0o777 == 0o700
        (work / "file").touch()
    assert not list(root.iterdir())


def test_without_one_it_is_the_place_for_large_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/tmp is memory on many systems."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert scratch.place() == Path("/var/tmp")
    monkeypatch.setattr(scratch, "LARGE", tmp_path / "none")
    assert scratch.place() == Path("/tmp")


def test_an_error_leaves_nothing(root: Path) -> None:
    def fail() -> None:
        with scratch.folder() as work:
            (work / "file").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(root.iterdir())


def test_what_a_killed_run_left_is_removed_and_what_a_running_one_holds_stays(root: Path) -> None:
    old = time.time() - 2 * scratch.YOUNG_S
    left, young, mine = (root / f"{scratch.PREFIX}{name}" for name in ("left", "young", "mine"))
    for place in (left, young, mine):
        place.mkdir()
        (place / "image.tar").touch()
    with scratch.folder() as held:
        for place in (left, held):
            os.utime(place, (old, old))
        with scratch.folder():
            assert not left.exists()
            assert young.exists()
            assert held.exists()


def test_a_link_with_that_name_is_not_followed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("target")
    (target / "file").touch()
    link = root / f"{scratch.PREFIX}link"
    link.symlink_to(target)
    old = time.time() - 2 * scratch.YOUNG_S
    os.utime(link, (old, old), follow_symlinks=False)
    with scratch.folder():
        assert (target / "file").exists()
