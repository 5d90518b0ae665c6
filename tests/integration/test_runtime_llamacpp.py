"""The runtime with its real engine and a real model: llama.cpp from the xllamacpp wheel serves SmolLM2-135M-Instruct."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from builder.engines.local import LocalEngine
from builder.models.resolve import resolve
from builder.models.source import ModelRef
from builder.runtime.drive import Answer, ask
from builder.stores.open import open_store
from builder.weights.push import push
from builder.weights.split import plan
from tests.bounds import BOUND_S
from tests.conftest import missing
from tests.integration.test_runtime import ROOT, Served, free_port, gone
from tests.models import smollm2


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("xllamacpp") is None:
        missing("llama.cpp", "xllamacpp is not installed: pip install .[demo]")
    folder = tmp_path_factory.mktemp("store")
    push(plan(resolve(ModelRef(str(smollm2())))), open_store(str(folder)), LocalEngine(), name="smollm2")
    return folder


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {
        "BUILDER_ENGINE": "llama.cpp",
        "BUILDER_ENGINE_ARGS": '["--ctx-size", "2048", "--parallel", "2"]',
        "BUILDER_MODEL": "smollm2",
        "BUILDER_WARMUP_BATCH": "1",
        "BUILDER_WARMUP_TOKENS": "8",
        "BUILDER_WARMUP_S": "20",
        "BUILDER_GRACE_S": "20",
        "CUDA_MODULE_LOADING": "LAZY",
    }


def test_a_real_model_answers_and_a_running_answer_survives_sigterm(tmp_path: Path, store: Path, env: dict[str, str]) -> None:
    served = Served(tmp_path, store, (), env)
    try:
        # Asked before anything is there: held, then answered.
        early: list[Answer] = []
        served.until(lambda: served.get("/live")[0] == 200)
        asking = threading.Thread(
            target=lambda: early.append(ask(served.url, "smollm2", "What is 2+2?", max_tokens=12, timeout_s=BOUND_S))
        )
        asking.start()
        asking.join(BOUND_S)
        assert early, served.err.read_text()
        assert early[0].text.strip()
        assert ask(served.url, "smollm2", "What is 2+2?", max_tokens=12).text == early[0].text
        status = served.until_ready()
        assert b"CUDA_MODULE_LOADING=LAZY" in Path(f"/proc/{status['engine_pid']}/environ").read_bytes().split(b"\0")

        late: list[Answer] = []
        asking = threading.Thread(
            target=lambda: late.append(ask(served.url, "smollm2", "Count to one hundred.", max_tokens=60, timeout_s=BOUND_S))
        )
        asking.start()
        time.sleep(0.5)
        assert served.end(signal.SIGTERM) == 0
        asking.join(BOUND_S)
        assert late, "the answer was cut off"
        assert late[0].tokens > 12
        assert gone(status["engine_pid"])
    finally:
        served.process.kill()
        served.process.wait()


def test_selftest_of_a_real_model(tmp_path: Path, store: Path, env: dict[str, str]) -> None:
    values = {**os.environ, **env, "PYTHONPATH": str(ROOT), "BUILDER_STORE": str(store), "BUILDER_HOST": "127.0.0.1"}
    values |= {"BUILDER_MODELS_ROOT": str(tmp_path / "models"), "BUILDER_PORT": str(free_port())}
    values["BUILDER_CONTROL_PORT"] = str(free_port())
    argv = [
        sys.executable,
        "-m",
        "builder.runtime",
        "selftest",
        "--max-tokens",
        "12",
        "--concurrency",
        "1,2",
        "--requests",
        "2",
    ]
    done = subprocess.run(argv, env=values, capture_output=True, text=True, check=False, timeout=BOUND_S)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ok"]
    assert result["answer"]["repeated"]
    assert result["answer"]["tokens"] == 12
    assert [level["errors"] for level in result["load"]] == [0, 0]
    assert result["exit_code"] == 0


def test_a_file_that_is_no_model_ends_with_the_engines_code(tmp_path: Path, store: Path, env: dict[str, str]) -> None:
    """The GGUF is damaged after its sizes were compared, so it is the engine that finds out."""
    served = Served(tmp_path, store, (), env | {"BUILDER_READY_TIMEOUT_S": "60"})
    served.until(lambda: served.get("/ready")[1]["digest"] != "")
    served.end(signal.SIGKILL)
    [path] = (tmp_path / "models").glob("*/*.gguf")
    with path.open("r+b") as file:
        file.write(b"JUNK")
    served = Served(tmp_path, store, (), env)
    assert served.process.wait(BOUND_S) == 1
    assert "llama.cpp cannot serve it" in served.err.read_text()
