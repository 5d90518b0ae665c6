"""`builder init` on real files: what it writes, it also reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.cli.group import run
from builder.config.load import load
from builder.image.lock import Lock, LockLayer, Wheel, text
from builder.image.locked import asks
from tests.models import gguf_model, safetensors_model


def builder(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(words)
    return int(ended.value.code or 0)


def test_a_gguf_file_gets_llama_cpp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = gguf_model(tmp_path / "Tiny-Chat.Q8_0.gguf")
    assert builder("init", str(model), "-o", str(tmp_path / "builder.yaml")) == 0
    loaded = load(tmp_path)
    assert loaded.spec.name == "tiny-chat.q8-0"
    assert loaded.spec.image.engine.name == "llama.cpp"
    assert loaded.model_source == str(model)
    about = "tiny-chat.q8-0: llama, 25k parameters, F16 + Q8_0 + F32"
    assert about in (tmp_path / "builder.yaml").read_text()
    assert about in capsys.readouterr().out


def test_a_safetensors_folder_is_described(tmp_path: Path) -> None:
    safetensors_model(tmp_path / "model", layers=1)
    assert builder("init", str(tmp_path / "model"), "-o", str(tmp_path / "builder.yaml"), "--store", "s3://b/p") == 0
    text = (tmp_path / "builder.yaml").read_text()
    assert "BF16" in text
    assert "in 3 files" in text
    assert load(tmp_path).spec.weights.store == "s3://b/p"
    assert json.loads((tmp_path / "builder.schema.json").read_text())["title"] == "builder.yaml"


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_what_init_writes_can_be_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    model = gguf_model(tmp_path / "m.gguf") if kind == "gguf" else safetensors_model(tmp_path / "m")
    assert builder("init", str(model), "-o", str(tmp_path / "builder.yaml")) == 0
    capsys.readouterr()
    assert builder("render", "-f", str(tmp_path / "builder.yaml")) == 2
    assert "run `builder lock`" in capsys.readouterr().err
    spec = load(tmp_path).spec
    wheels = (Wheel("w", "1", ("0" * 64,)),)
    lock = Lock(spec.name, spec.image.python, ("linux/amd64",), asks(spec), (LockLayer("engine", wheels),))
    (tmp_path / "requirements.lock").write_text(text(lock))
    assert builder("render", "-f", str(tmp_path / "builder.yaml")) == 0
    assert capsys.readouterr().out.count("FROM ") >= 5


def test_a_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = gguf_model(tmp_path / "m.gguf")
    (tmp_path / "builder.yaml").write_text("mine")
    assert builder("init", str(model), "-o", str(tmp_path / "builder.yaml")) == 2
    assert (tmp_path / "builder.yaml").read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert builder("init", str(model), "-o", str(tmp_path / "builder.yaml"), "--force") == 0


def test_what_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert builder("init", str(tmp_path / "none"), "-o", str(tmp_path / "b.yaml")) == 2
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    assert builder("init", str(tmp_path / "bad.gguf"), "-o", str(tmp_path / "b.yaml")) == 3
    assert "bad.gguf" in capsys.readouterr().err
    assert not (tmp_path / "b.yaml").exists()
