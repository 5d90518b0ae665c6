"""builder cache, and weights pull --cache: what they print, what they refuse, what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builder.cli.group import run
from builder.format.volume import MARKER, model_dir, partial_dir, use_file
from builder.transfer.lease import hold
from tests.unit.transfer import build

MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models in a store; the current folder has no builder.yaml."""
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(("old", "new")):
        build.model({"w.bin": bytes([n + 1]) * MIB}, chunk_bytes=MIB // 4, name=name).store(tmp_path / "store")
    return tmp_path / "root"


def builder(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        run([str(word) for word in words])
    return int(ended.value.code or 0)


def pull(name: str, *words: object) -> int:
    return builder("weights", "pull", name, "--store", "store", *words, "--format", "json")


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def fill(root: Path, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    """Both models, the first used long ago."""
    folders = []
    for name in ("old", "new"):
        assert pull(name, "--cache", root) == 0
        folders.append(Path(said(capsys)["folder"]))
    os.utime(use_file(folders[0]), (1000, 1000))
    return folders


def test_pull_into_a_cache_fetches_once_and_makes_room_when_told_to(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = fill(root, capsys)
    assert [f.parent for f in folders] == [root, root]
    assert pull("new", "--cache", root, "--cache-size", "3MiB") == 0
    assert said(capsys)["fetched_bytes"] == 0
    assert [f.exists() for f in folders] == [True, True]
    build.model({"w.bin": bytes(MIB)}, name="third", chunk_bytes=MIB).store(Path("store"))
    assert pull("third", "--cache", root, "--cache-size", "4MiB") == 0
    assert [f.exists() for f in folders] == [False, True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "where to?"),
        (["--to", "a", "--cache", "b"], "where to?"),
        (["--to", "a", "--cache-size", "1GiB"], "--cache-size is the size of a models root"),
        (["--cache", "b", "--cache-size", "many"], "expected a size such as 200GiB"),
    ],
)
def test_pull_is_told_one_place(root: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert pull("new", *words) == 2
    assert message in said(capsys)["error"]["message"]
    assert not Path("a").exists()
    assert not Path("b").exists()


def test_ls_says_what_is_there_and_who_uses_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert builder("cache", "ls", "--root", root) == 0
    assert capsys.readouterr().out == f"{root}: no models here\n"
    old, new = fill(root, capsys)
    partial = partial_dir(model_dir(root, "sha256:" + "0" * 64))
    partial.mkdir()
    (partial / "part").write_bytes(bytes(5000))
    lease = hold(new)
    assert builder("cache", "ls", "--root", root, "--format", "json") == 0
    by_digest = {m["digest"][7:]: m for m in said(capsys)["models"]}
    assert {k: (m["name"], m["state"], m["in_use"], m["pids"]) for k, m in by_digest.items()} == {
        old.name: ("old", "complete", False, []),
        new.name: ("new", "complete", True, [os.getpid()]),
        "0" * 64: ("", "partial", False, []),
    }
    assert by_digest[old.name]["used_at"] == 1000
    assert builder("cache", "ls", "--root", root) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["new"].endswith(f"process {os.getpid()}")
    assert lines["old"].endswith("d ago")
    lease.release()
    use_file(old).unlink()
    (new / MARKER).unlink()
    assert builder("cache", "ls", "--root", root) == 0
    lines = {line.split()[1].removeprefix("sha256:"): line for line in capsys.readouterr().out.splitlines()}
    assert lines[old.name[:12]].endswith("kept: no cache's")
    assert "damaged" in lines[new.name[:12]]


def test_prune_removes_the_longest_unused_and_a_dry_run_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = fill(root, capsys)
    assert builder("cache", "prune", "--root", root, "--size", "2MiB", "--dry-run", "--format", "json") == 0
    found = said(capsys)
    assert [e["digest"][7:] for e in found["removed"]] == [old.name]
    assert old.exists()
    assert builder("cache", "prune", "--root", root, "--size", "2MiB", "--yes", "--format", "json") == 0
    assert said(capsys) == {**found, "dry_run": False}
    assert [old.exists(), new.exists()] == [False, True]
    lease = hold(new)
    assert builder("cache", "prune", "--root", root, "--all", "--yes") == 0
    assert capsys.readouterr().out == "removed 0 models, 0 B\n"
    lease.release()
    assert builder("cache", "prune", "--root", root, "--all", "--yes") == 0
    assert list(root.iterdir()) == []


def test_prune_off_a_terminal_wants_a_yes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(root, capsys)
    command = [sys.executable, "-c", "from builder.cli import main; main()", "cache", "prune", "--root", str(root), "--all"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "this would remove 2 models" in done.stderr
    assert "--dry-run" in done.stderr


@pytest.mark.parametrize("words", [[], ["--all", "--size", "1GiB"], ["--size", "1"]])
def test_prune_is_told_how_much(root: Path, words: list[str]) -> None:
    assert builder("cache", "prune", "--root", root, *words) == 2


def test_verify_reads_all_and_names_what_is_bad(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = fill(root, capsys)
    assert builder("cache", "verify", "--root", root) == 0
    assert capsys.readouterr().out == "".join(f"{name}: good\n" for name in sorted([old.name, new.name]))
    with (new / "w.bin").open("r+b") as file:
        file.seek(MIB // 2)
        file.write(b"\0")
    assert builder("cache", "verify", "--root", root, "--format", "json") == 3
    found = said(capsys)
    assert not found["ok"]
    assert {Path(m["folder"]): len(m["faults"]) for m in found["models"]} == {old: 0, new: 1}
    assert f"{new.name[:12]}: w.bin, bytes [524288, 786432)" in found["error"]["message"]
    assert f"repair --local {new}" in found["error"]["hint"]
