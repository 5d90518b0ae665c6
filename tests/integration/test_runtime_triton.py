"""`serve` and `selftest` with the triton engine on a CPU: the tritonserver of the wheel nvidia-pytriton, and a model in Python.

The wheel needs numpy older than 2, which onnxruntime's does not, so it is not among the development packages:
`pip install --no-deps nvidia-pytriton==0.7.0 'numpy<2'` in an environment of its own runs this file.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builder.engines.local import LocalEngine
from builder.format.phases import parse_lines
from builder.models.resolve import resolve
from builder.models.source import ModelRef
from builder.runtime import v2
from builder.runtime.drive import asking, run_level
from builder.stores.open import open_store
from builder.weights.push import push
from builder.weights.split import plan
from tests.bounds import BOUND_S
from tests.conftest import missing
from tests.integration.test_runtime import Served, gone

Serve = Callable[..., Served]
CONFIG = """
backend: "python"
max_batch_size: 16
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
MODEL = """
import os
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        at = os.path.join(args["model_repository"], args["model_version"], "weights.bin")
        self.weights = np.fromfile(at, dtype="<f4").reshape(4, 3)

    def execute(self, requests):
        rows = [pb.get_input_tensor_by_name(r, "x").as_numpy() @ self.weights for r in requests]
        return [pb.InferenceResponse([pb.Tensor("y", row)]) for row in rows]
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: "linear", a model's own folder, and "front", a repository that holds it and another."""
    if importlib.util.find_spec("pytriton") is None:
        missing("triton", "nvidia-pytriton is not installed")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("store")
    for at in ("linear", "front/front", "front/other"):
        (source / at / "1").mkdir(parents=True)
        (source / at / "config.pbtxt").write_text(CONFIG)
        (source / at / "1" / "model.py").write_text(MODEL)
        (source / at / "1" / "weights.bin").write_bytes(struct.pack("<12f", *range(12)))
    for name in ("linear", "front"):
        push(plan(resolve(ModelRef(str(source / name)))), open_store(str(folder)), LocalEngine(), name=name)
    return folder


@pytest.fixture
def serve(tmp_path: Path, store: Path) -> Iterator[Serve]:
    running: list[Served] = []

    def start(model: str, **env: str) -> Served:
        values = {"BUILDER_ENGINE": "triton", "BUILDER_ENGINE_ARGS": "[]", "CUDA_MODULE_LOADING": "LAZY"}
        running.append(Served(tmp_path, store, (), values | {"BUILDER_MODEL": model, "BUILDER_GRACE_S": "20"} | env))
        return running[-1]

    yield start
    for served in running:
        served.process.kill()
        served.process.wait()


@pytest.mark.parametrize("model", ["linear", "front"])
def test_from_the_store_to_the_right_numbers(serve: Serve, model: str) -> None:
    served = serve(model, BUILDER_WARMUP_BATCH="1,4,32")
    status = served.until_ready()
    data = struct.pack("<8f", 1, 0, 0, 0, 1, 1, 1, 1)
    [y] = v2.infer(served.url, model, [(v2.Spec("x", "FP32", (-1, 4)), (2, 4), data)], timeout_s=BOUND_S)
    assert struct.unpack("<6f", y.data) == (0, 1, 2, 18, 22, 26)
    [stable] = [p for p in parse_lines(served.out.read_text().splitlines()) if p.phase == "stable"]
    small, middle, large = stable.detail["shapes"]
    assert (small["error"], middle["error"]) == ("", "")
    assert "batch-size must be <= 16" in large["error"]  # its own limit, and no reason not to start
    report = run_level(served.url, model, concurrency=4, requests=16, asker=asking("v2"))
    assert report.errors == 0, report.error_samples
    assert served.end() == 0
    assert gone(status["engine_pid"])


def test_selftest_proves_the_claims(serve: Serve) -> None:
    served = serve("linear")
    served.end(signal.SIGKILL)  # only its environment is wanted
    argv = [sys.executable, "-m", "builder.runtime", "selftest", "--concurrency", "1,3", "--requests", "6"]
    done = subprocess.run(argv, env=served.env, capture_output=True, text=True, check=False, timeout=BOUND_S)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["answer"]["repeated"]
    assert json.loads(result["answer"]["text"])[0]["name"] == "y"
    assert [(level["requests"], level["errors"]) for level in result["load"]] == [(6, 0), (6, 0)]
