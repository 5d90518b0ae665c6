"""`serve` and `selftest` with the onnxruntime engine on a CPU: real models, real processes."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builder.config.spec import Expect, Load, Verify, Warmup
from builder.config.spec import Serve as Serving
from builder.engines.local import LocalEngine
from builder.format.phases import parse_lines
from builder.models.resolve import ModelRef, resolve
from builder.runtime import v2
from builder.runtime.drive import asking, run_level
from builder.stores.open import open_store
from builder.transfer.manifests import read_manifest
from builder.transfer.source import open_source
from builder.verify.launch import Launch
from builder.verify.run import verify_in_place
from builder.weights.push import push
from builder.weights.split import plan
from tests.bounds import BOUND_S
from tests.integration.test_runtime import Served, gone
from tests.models import onnx_linear, onnx_tokens

Serve = Callable[..., Served]
ENV = {"BUILDER_ENGINE": "onnxruntime", "BUILDER_ENGINE_ARGS": "[]", "CUDA_MODULE_LOADING": "LAZY"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models: linear, tokens, and one that is none."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("store")
    onnx_linear(source / "linear" / "model.onnx")
    onnx_tokens(source / "tokens" / "onnx" / "model.onnx")
    (source / "damaged").mkdir()
    (source / "damaged" / "model.onnx").write_bytes(b"no protobuf")
    for name in ("linear", "tokens", "damaged"):
        push(plan(resolve(ModelRef(str(source / name)))), open_store(str(folder)), LocalEngine(), name=name)
    return folder


@pytest.fixture
def serve(tmp_path: Path, store: Path) -> Iterator[Serve]:
    running: list[Served] = []

    def start(model: str, **env: str) -> Served:
        running.append(Served(tmp_path, store, (), ENV | {"BUILDER_MODEL": model} | env))
        return running[-1]

    yield start
    for served in running:
        served.process.kill()
        served.process.wait()


def linear(served: Served, *rows: list[float]) -> list[float]:
    spec, shape = v2.Spec("x", "FP32", (-1, 4)), (len(rows), 4)
    data = struct.pack(f"<{4 * len(rows)}f", *(v for row in rows for v in row))
    [y] = v2.infer(served.url, "linear", [(spec, shape, data)], timeout_s=BOUND_S)
    return list(struct.unpack(f"<{3 * len(rows)}f", y.data))


def test_from_the_store_to_the_right_numbers(serve: Serve) -> None:
    served = serve("linear", BUILDER_WARMUP_BATCH="1,3")
    early: list[Any] = []
    served.until(lambda: served.get("/live")[0] == 200)
    asker = threading.Thread(target=lambda: early.append(linear(served, [1, 0, 0, 0])))  # held until it is ready
    asker.start()
    status = served.until_ready()
    asker.join(BOUND_S)
    assert early == [[1, 3, 5]]  # the first row of W, and b
    assert linear(served, [0, 0, 0, 0], [1, 1, 1, 1]) == [1, 2, 3, 19, 24, 29]
    phases = {p.phase: p for p in parse_lines(served.out.read_text().splitlines())}
    assert phases["first_token"].detail["tokens"] == 1
    assert [(s["batch"], s["error"]) for s in phases["stable"].detail["shapes"]] == [(1, ""), (3, "")]
    assert served.end() == 0
    assert gone(status["engine_pid"])


def test_a_model_of_tokens_is_warmed_in_every_shape(serve: Serve) -> None:
    served = serve("tokens", BUILDER_WARMUP_BATCH="1,4", BUILDER_WARMUP_TOKENS="8,64")
    served.until_ready()
    [stable] = [p for p in parse_lines(served.out.read_text().splitlines()) if p.phase == "stable"]
    assert [(s["batch"], s["tokens"], s["error"]) for s in stable.detail["shapes"]] == [
        (1, 8, ""), (4, 8, ""), (1, 64, ""), (4, 64, "")
    ]  # fmt: skip
    report = run_level(served.url, "tokens", concurrency=4, requests=12, asker=asking("v2"))
    assert (report.errors, report.tokens) == (0, 12), report.error_samples
    answer = json.loads(asking("v2")(served.url, "tokens", "a b c").text)
    assert (answer[0]["name"], answer[0]["shape"]) == ("embeddings", [1, 3, 8])


def test_what_is_no_model_ends_with_one_line(serve: Serve) -> None:
    served = serve("damaged")
    assert served.process.wait(BOUND_S) == 1
    assert "error: " in served.err.read_text()
    assert "onnxruntime cannot serve it" in served.err.read_text()
    assert "Traceback" not in served.err.read_text()


def test_a_taken_argument_is_refused_before_the_weights(serve: Serve, tmp_path: Path) -> None:
    served = serve("linear", BUILDER_ENGINE_ARGS='["--port", "1"]')
    assert served.process.wait(BOUND_S) == 2
    assert "BUILDER_ENGINE_ARGS: --port is decided by the runtime for onnxruntime" in served.err.read_text()
    assert not (tmp_path / "models").exists()


def test_a_server_that_must_use_cuda_says_that_it_cannot(store: Path, tmp_path: Path) -> None:
    """The wheel for CPUs stands for one whose CUDA libraries do not load: onnxruntime itself goes on with the CPU."""
    path = onnx_linear(tmp_path / "model.onnx")
    command = [sys.executable, "-m", "builder.runtime.onnxruntime", "--model", str(path), "--name", "m", "--port", "1"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, "--provider", "cuda"], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 4
    assert "but onnxruntime runs m with CPUExecutionProvider only" in done.stderr


def selftest(served: Served, *options: str) -> tuple[int, dict[str, Any]]:
    served.end(signal.SIGKILL)  # only its environment is wanted
    argv = [sys.executable, "-m", "builder.runtime", "selftest", "--concurrency", "1,3", "--requests", "6", *options]
    done = subprocess.run(argv, env=served.env, capture_output=True, text=True, check=False, timeout=BOUND_S)
    return done.returncode, json.loads(done.stdout or "{}")


def test_selftest_proves_the_claims(serve: Serve) -> None:
    code, result = selftest(serve("tokens"))
    assert (code, result["failures"], result["ok"]) == (0, [], True)
    assert result["answer"]["repeated"]
    assert json.loads(result["answer"]["text"])[0]["name"] == "embeddings"
    assert [(level["requests"], level["errors"]) for level in result["load"]] == [(6, 0), (6, 0)]
    assert result["exit_code"] == 0


def test_selftest_finds_a_missing_text(serve: Serve) -> None:
    code, result = selftest(serve("linear"), "--contains", "pacific")
    assert code == 7
    assert any("'pacific' is not in" in failure for failure in result["failures"])


def test_verify_in_place_asks_in_tensors(store: Path) -> None:
    """The whole of `builder verify --in-place`: the question, the load and the checks speak the engine's protocol."""
    source = open_source(str(store))
    manifest = read_manifest(source, "tokens")
    launch = Launch(
        "tokens", manifest.digest, str(store), "onnxruntime", serve=Serving(warmup=Warmup(batch=(1, 2), tokens=(8,)))
    )
    asked = Verify(gpu="none", expect=Expect(contains='"embeddings"'), load=Load(concurrency=(1, 3), requests=6))
    report = verify_in_place(launch, asked, environ=os.environ)
    assert [check for check in report.checks if not check.ok] == []
    assert {"answer.contains", "answer.deterministic", "load.1", "load.3"} <= {check.id for check in report.checks}
    assert json.loads(report.answer.text)[0]["datatype"] == "FP32"
    assert all(level.tokens_per_s > 0 for level in report.load)
