"""The weights commands as a user runs them, on the two real models, over a folder and over S3."""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bounds import BOUND_S
from tests.conftest import S3
from tests.models import minilm, smollm2

BUILDER = [sys.executable, "-c", "from builder.cli import main; main()", "weights"]


def run(*args: str | Path, code: int = 0) -> dict[str, Any]:
    words = [*BUILDER, *map(str, args), "--format", "json", "-q"]
    done = subprocess.run(words, capture_output=True, timeout=BOUND_S, check=False)
    assert done.returncode == code, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], Path]:
    """The options that name it, and the folder its objects lie in."""
    if request.param == "directory":
        return ["--store", str(tmp_path / "store")], tmp_path / "store"
    s3: S3 = request.getfixturevalue("s3")
    return ["--store", f"{s3.url}/models", "--endpoint-url", s3.endpoint_url], s3.folder / s3.bucket / "models"


@pytest.mark.parametrize("which", [smollm2, minilm])
def test_push_damage_verify_repair_pull(store: tuple[list[str], Path], which: Any, tmp_path: Path) -> None:
    options, folder = store
    source: Path = which()
    pushed = run("push", source, "--name", "real", *options)
    assert pushed["sent_chunks"] == pushed["chunks"]
    assert run("push", source, "--name", "real", *options)["sent_chunks"] == 0
    assert run("verify", *options)["ok"]
    assert run("verify", "real", "--remote", *options)["by"] == "head"

    victim = max(folder.glob("chunks/sha256/*/*"), key=lambda p: p.stat().st_size)
    with victim.open("r+b") as f:
        f.seek(12345)
        byte = f.read(1)[0]
        f.seek(12345)
        f.write(bytes([byte ^ 4]))
    error = run("verify", *options, code=3)["error"]
    assert error["code"] == "integrity"
    (fault,) = error["where"]["faults"]
    assert fault["object"].endswith(victim.name)
    assert fault["tensors"]
    assert fault["end"] > fault["start"]
    repaired = run("repair", "--from", source, *options)
    assert repaired["repaired_chunks"] == 1
    assert run("verify", *options)["ok"]

    out = tmp_path / "out"
    run("pull", "real", "--to", out, *options)
    run("verify", "--local", out)
    files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    root = source.parent if source.is_file() else source
    for path in files:
        assert filecmp.cmp(path, out / path.relative_to(root), shallow=False)
    (model,) = run("ls", *options)["models"]
    assert (model["ref"], model["digest"]) == ("real", pushed["digest"])


def test_exit_codes(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\xff" * 100)
    options = ["--store", str(tmp_path / "store")]
    assert run("push", "/no/such", *options, code=2)["error"]["code"] == "config"
    assert run("push", empty, *options, code=2)["error"]["code"] == "config"
    assert run("push", bad, *options, code=3)["error"]["where"]["file"] == "bad.safetensors"
    for act in ("verify", "ls"):
        assert run(act, *options, code=5)["error"]["message"].endswith("no such folder")
    (tmp_path / "store").mkdir()
    assert run("verify", *options, code=3)["error"]["code"] == "integrity"
    assert run("ls", *options)["models"] == []
    unreachable = ["--store", "s3://bucket", "--endpoint-url", "http://127.0.0.1:9"]
    assert run("ls", *unreachable, code=5)["error"]["code"] == "remote"
