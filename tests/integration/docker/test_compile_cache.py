"""Compile caches for real: Inductor on a CPU, in the transformers image with its compiler, behind the runtime's own server.

The first start compiles, and is captured. A start with the captured cache must compile nothing: the test fails if it does. Then
the cache is baked; then the stack is another one.

`transformers serve --compile` compiles on accelerators alone (generation/utils.py, _valid_auto_compile_criteria), so the engine
is that very server with that one question answered yes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder import pipeline
from builder.config.load import Loaded, load
from builder.engines.local import LocalEngine
from builder.image import machine
from builder.models.source import ModelRef
from builder.stores.open import open_store
from builder.transfer import compiled
from tests.bounds import BOUND_S
from tests.conftest import missing
from tests.integration.docker.test_transformers import FOLDER, MAKE

pytestmark = pytest.mark.docker
TAG = "builder-test/compile-cache:latest"
BAKED = "builder-test/compile-cache:baked"
SERVE = """
import os, pathlib, sys, tempfile
from transformers.generation.utils import GenerationMixin
GenerationMixin._valid_auto_compile_criteria = lambda self, kwargs, config: True
model, name = sys.argv[1:3]
here = pathlib.Path(tempfile.mkdtemp())
(here / name).symlink_to(model)
os.chdir(here)
sys.argv = ["transformers", "serve", name, "--compile", "--device", "cpu", *sys.argv[3:]]
from transformers.cli.transformers import main
main()
"""


@dataclass(frozen=True)
class Bench:
    """An image that compiles, and a folder with a model's store, the server and the captured caches."""

    loaded: Loaded
    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "caches"


@dataclass(frozen=True)
class Started:
    """One start until it was ready, or until it ended. code: None while it runs."""

    name: str
    log: str
    code: int | None

    @property
    def detail(self) -> dict[str, Any]:
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith('{"detail"')]
        return next(line["detail"] for line in lines if line["phase"] == "compile_cache")

    def metric(self, name: str) -> str:
        code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8001/metrics').read().decode())"
        text = docker("exec", self.name, "python", "-c", code)
        return next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} "))


def docker(*args: str) -> str:
    done = subprocess.run(["docker", *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def description(folder: Path, more: str = "") -> Loaded:
    """images/transformers-cpu with the compiler. more: further lines of `image`."""
    shutil.copytree(FOLDER, folder)
    (folder / "verify").unlink()  # it looks for compilers, and finds them
    text = (folder / "builder.yaml").read_text()
    (folder / "builder.yaml").write_text(text.replace('  python: "3.11"\n', f'  python: "3.11"\n  jit: true\n{more}'))
    return load(folder / "builder.yaml")


@pytest.fixture(scope="module")
def bench(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("compile-cache")
    loaded = description(folder / "image")
    wheels = machine.wheelhouse(loaded)
    if wheels is None or not any(wheels.glob("torch-*+cpu-cp311-*.whl")):
        missing("torch-wheel", "no folder of pip's find-links holds torch's CPU wheel for Python 3.11")
    pipeline.build_image(loaded, tag=TAG)
    model = folder / "model"
    model.mkdir()
    model.chmod(0o777)
    docker(
        "run", "--rm", "--network=none", "-v", f"{model}:/model", "--entrypoint", "python", TAG, "-c", MAKE, "/model", "a", "1"
    )
    (folder / "store").mkdir()
    ref = ModelRef(source=str(model))
    pipeline.publish_weights(ref, open_store(str(folder / "store")), LocalEngine(2), name="tiny", chunk_bytes=1 << 20)
    (folder / "serve.py").write_text(SERVE)
    (folder / "caches").mkdir()
    for path in [folder, *folder.parents]:
        if path.is_relative_to(tmp_path_factory.getbasetemp()):
            path.chmod(0o755)  # read by the image's user
    yield Bench(loaded, folder)
    for tag in (TAG, BAKED):
        subprocess.run(["docker", "rmi", "-f", tag], capture_output=True, check=False)


@pytest.fixture
def starts(bench: Bench) -> Iterator[Any]:
    """`starts(tag, *docker arguments, **BUILDER_ variables)`; the containers end with the test."""
    names: list[str] = []

    def start(tag: str, *args: str, **env: str) -> Started:
        names.append(name := f"builder-test-{uuid.uuid4().hex[:12]}")
        command = ["/opt/venv/bin/python", "/given/serve.py", "{model}", "{name}", "--host", "{host}", "--port", "{port}"]
        own = {"STORE": "/given/store", "MODEL": "tiny", "ENGINE": "command", "ENGINE_ARGS": json.dumps(command)}
        own |= {"WARMUP_TOKENS": "16"} | env
        given = [word for key, value in own.items() for word in ("-e", f"BUILDER_{key}={value}")]
        docker("run", "-d", "--name", name, "--network=none", "-v", f"{bench.folder}:/given:ro", *given, *args, tag)
        deadline = time.monotonic() + BOUND_S
        while time.monotonic() < deadline:
            state = json.loads(docker("inspect", "-f", "{{json .State}}", name))
            told = subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=True)
            log = told.stdout + told.stderr
            if "builder: ready:" in log or not state["Running"]:
                return Started(name, log, None if state["Running"] else state["ExitCode"])
            time.sleep(0.5)
        pytest.fail(f"neither ready nor ended within {BOUND_S:g} s:\n{log[-4000:]}")

    yield start
    subprocess.run(["docker", "rm", "-f", "-v", *names], capture_output=True, check=False)


def capture(bench: Bench, started: Started) -> compiled.Artifact:
    folder = bench.folder / "artifact"
    store = open_store(str(bench.store))
    made, pushed = pipeline.capture_compiled(
        None, started.name, folder, private=bench.folder / "private", store=store, workers=LocalEngine(2)
    )
    assert pushed is not None
    assert pushed.name == "tiny"
    return made


def test_a_start_that_should_hit_compiles_nothing(bench: Bench, starts: Any) -> None:
    cold = starts(TAG)
    assert cold.code is None, cold.log
    assert cold.detail["result"] == "none"
    assert "builder: compile-cache: compiled " in cold.log
    assert int(cold.metric("builder_compile_cache_new_files")) > 10
    (bench.folder / "private").mkdir()
    made = capture(bench, cold)
    assert len(made.entries) == int(cold.metric("builder_compile_cache_new_files"))
    assert {entry.path.split("/")[0] for entry in made.entries} == {"inductor"}
    assert made.fingerprint.fields["root"] == "/opt/cache"

    hit = starts(TAG, COMPILE_CACHE="require", COMPILE_CACHE_STORE="/given/caches")
    assert hit.code is None, hit.log
    assert (hit.detail["result"], hit.detail["files"], hit.detail["key"]) == ("hit", len(made.entries), made.fingerprint.key)
    assert hit.metric("builder_compile_cache_new_files") == "0"
    assert hit.metric("builder_compile_cache_hit") == "1"
    assert "compiled" not in hit.log.replace("TORCH", "")

    # The same cache, and one kernel gone: the engine compiles, and it is told.
    short = bench.folder / "short"
    shutil.copytree(bench.folder / "artifact", bench.folder / "whole")
    compiled.unpack(compiled.load(bench.folder / "whole"), bench.folder / "cut")
    (bench.folder / "cut/.builder").mkdir()
    (bench.folder / "cut/.builder/fingerprint.json").write_bytes(made.fingerprint.to_bytes())
    for name in ("aotautograd", "fxgraph"):
        shutil.rmtree(bench.folder / "cut/inductor" / name)
    compiled.pack(bench.folder / "cut", short, {})
    missed = starts(TAG, COMPILE_CACHE="require", COMPILE_CACHE_DIR="/given/short")
    assert missed.code is None, missed.log
    assert missed.detail["result"] == "hit"
    assert int(missed.metric("builder_compile_cache_new_files")) > 0
    assert "though the captured cache is for this stack" in missed.log

    baked = description(bench.folder / "baked", f"  compile_cache: {bench.folder / 'artifact'}\n")
    built, plain = pipeline.build_image(baked, tag=BAKED), json.loads(docker("image", "inspect", TAG))[0]["RootFS"]["Layers"]
    described = json.loads(docker("image", "inspect", BAKED))[0]
    assert described["RootFS"]["Layers"][:-1] == plain  # a last layer of its own: nothing else's digest changed
    assert described["Config"]["Labels"]["builder.cache-fingerprint"] == made.fingerprint.key
    assert built.digest
    from_image = starts(BAKED, COMPILE_CACHE="require")
    assert from_image.code is None, from_image.log
    assert from_image.detail["origin"] == "/opt/builder/compile-cache"
    assert from_image.metric("builder_compile_cache_new_files") == "0"

    moved = starts(BAKED, "-e", "HOME=/tmp", COMPILE_CACHE="require")
    assert moved.code == 4
    assert "env.HOME: captured with /home/app, here /tmp" in moved.log
    assert "engine: command started" not in moved.log
