"""The weights commands driven by builder.yaml alone: no arguments, and builder.lock says what its names meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.cli.group import run
from builder.config import lock
from tests.models import safetensors_model


def builder(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(words)
    return int(ended.value.code or 0)


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and the builder.yaml that `builder init` writes for it; the current folder."""
    safetensors_model(tmp_path / "tiny-llama")
    monkeypatch.chdir(tmp_path)
    assert builder("init", "tiny-llama") == 0
    return tmp_path


def test_push_pull_verify_repair_and_ls_need_no_arguments(described: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert builder("weights", "push", "--format", "json") == 0
    out = capsys.readouterr().out.splitlines()[-1]
    digest = json.loads(out)["digest"]
    assert lock.section(described / "builder.lock", "weights")["manifest"] == digest
    assert lock.section(described / "builder.lock", "model") == {"source": "tiny-llama", "revision": ""}
    assert builder("weights", "pull", "--to", "restored") == 0
    for path in (described / "tiny-llama").iterdir():
        assert (described / "restored" / path.name).read_bytes() == path.read_bytes()
    damaged = next((described / "store" / "chunks").rglob("??????????*"))
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    assert builder("weights", "verify") == 3
    assert builder("weights", "repair") == 0
    assert builder("weights", "verify") == 0
    capsys.readouterr()
    assert builder("weights", "ls") == 0
    assert "tiny-llama" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--dry-run"], ["--name", "other"], ["other"], ["--store", "elsewhere"], ["--include", "*.json"]]
)
def test_a_push_of_something_else_than_described_leaves_the_lock_alone(described: Path, words: list[str]) -> None:
    safetensors_model(described / "other", seed=1)
    assert builder("weights", "push", *words) == 0
    assert not (described / "builder.lock").exists()


def test_a_lock_that_cannot_be_written_does_not_hide_the_push(described: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (described / "builder.lock").mkdir()
    capsys.readouterr()
    assert builder("weights", "push", "--format", "json") != 0
    told = json.loads(capsys.readouterr().out)
    assert told["digest"].startswith("sha256:")
    assert "builder.lock" in told["error"]["message"]
