"""The index of digests: what it keeps, and that nothing wrong comes out of it whatever happened to its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from builder.format.manifest import Chunk
from builder.weights import index as module
from builder.weights.index import Index, Known
from tests.bounds import BOUND_S

ONE = "file:/a:1"
CHUNKS = [Chunk(f"{n:064x}", n * 10, 10, f"{n:016x}") for n in range(20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "index"


def filled(folder: Path) -> Path:
    """An index of CHUNKS; its only file."""
    index = Index(folder)
    for chunk in CHUNKS:
        index.add_chunk(ONE, chunk)
    index.add_whole(ONE, "a" * 64)
    (path,) = folder.iterdir()
    return path


def test_what_was_added_is_known_to_the_next_process(folder: Path) -> None:
    filled(folder)
    assert Index(folder).known(ONE) == Known({(c.offset, c.size): c for c in CHUNKS}, "a" * 64)


def test_another_identity_is_another_file(folder: Path) -> None:
    filled(folder)
    for identity in ("file:/a:2", "file:/b:1", ""):
        assert Index(folder).known(identity) == Known()


def test_without_identity_or_folder_nothing_is_kept(folder: Path) -> None:
    Index(folder).add_whole("", "a" * 64)
    Index(None).add_whole(ONE, "a" * 64)
    assert not folder.exists()
    assert Index(None).known(ONE) == Known()


def test_only_the_user_reads_it(folder: Path) -> None:
    path = filled(folder)
    assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_torn_end_costs_one_line(folder: Path) -> None:
    path = filled(folder)
    whole = path.read_bytes()
    for size in range(0, len(whole), 5):
        path.write_bytes(whole[:size])
        found = Index(folder).known(ONE)
        assert set(found.chunks.values()) <= set(CHUNKS)
        assert found.sha256 in ("", "a" * 64)
    path.write_bytes(whole[:-30])
    Index(folder).add_whole(ONE, "b" * 64)  # after the torn line
    assert Index(folder).known(ONE).sha256 == "b" * 64
    assert len(Index(folder).known(ONE).chunks) == len(CHUNKS)


def test_no_flipped_bit_comes_out(folder: Path) -> None:
    path = filled(folder)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        body = bytearray(whole)
        body[at] ^= 1 << (at % 8)
        path.write_bytes(body)
        found = Index(folder).known(ONE)
        assert set(found.chunks.values()) <= set(CHUNKS)
        assert found.sha256 in ("", "a" * 64)
        assert len(found.chunks) >= len(CHUNKS) - 2  # a damaged line end takes two


def test_zeros_and_noise_are_passed_over(folder: Path) -> None:
    """What a power cut leaves of appended lines."""
    path = filled(folder)
    with path.open("ab") as f:
        f.write(bytes(5000) + os.urandom(5000))
    Index(folder).add_whole(ONE, "c" * 64)
    found = Index(folder).known(ONE)
    assert (len(found.chunks), found.sha256) == (len(CHUNKS), "c" * 64)


def test_a_file_under_another_name_says_nothing(folder: Path) -> None:
    path = filled(folder)
    index = Index(folder)
    index.add_whole("file:/b:1", "d" * 64)
    (other,) = set(folder.iterdir()) - {path}
    other.write_bytes(path.read_bytes())
    assert index.known("file:/b:1") == Known()


def test_a_wrong_entry_is_forgotten(folder: Path) -> None:
    filled(folder)
    index = Index(folder)
    index.forget(ONE)
    index.forget(ONE)
    assert index.known(ONE) == Known()


def test_a_folder_that_cannot_be_used_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    index = Index(tmp_path / "file" / "index")
    index.add_whole(ONE, "a" * 64)
    index.forget(ONE)
    assert index.known(ONE) == Known()


def test_names_of_files_may_be_any_bytes(folder: Path) -> None:
    identity = "file:/\udcff\n\x1b:1"
    Index(folder).add_whole(identity, "a" * 64)
    assert Index(folder).known(identity).sha256 == "a" * 64


def test_the_oldest_entries_go_when_it_grows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(folder)
    for n in range(10):
        before = set(folder.iterdir()) if n else set()
        index.add_whole(f"file:{n}", f"{n:064x}")
        (path,) = set(folder.iterdir()) - before
        os.utime(path, (n, n))
        size = path.stat().st_size
    monkeypatch.setattr(module, "MAX_BYTES", 4 * size)
    Index(folder).add_whole("file:new", "a" * 64)
    known = [n for n in range(10) if Index(folder).known(f"file:{n}").sha256]
    assert known == [6, 7, 8, 9]


def test_processes_append_at_once(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from builder.weights.index import Index; from builder.format.manifest import Chunk\n"
        "index, start = Index(Path(sys.argv[1])), int(sys.argv[2])\n"
        "for n in range(start, start + 300): index.add_chunk('file:x', Chunk(f'{n:064x}', n, 1, f'{n:016x}'))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(folder), str(n * 300)]) for n in range(3)]
    assert [p.wait(BOUND_S) for p in running] == [0, 0, 0]
    found = Index(folder).known("file:x").chunks
    assert found == {(n, 1): Chunk(f"{n:064x}", n, 1, f"{n:016x}") for n in range(900)}
