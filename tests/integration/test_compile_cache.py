"""Compile caches through `serve`: its phases, metrics and exit codes. The engine compiles one file if it is not there."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from builder.cli.group import run
from tests.bounds import BOUND_S
from tests.integration.test_runtime import ENGINE, Serve, Served, metrics, serve, store

__all__ = ["serve", "store"]
COMPILE = 'mkdir -p "$CACHE/inductor"; [ -e "$CACHE/inductor/k.so" ] || echo compiled >"$CACHE/inductor/k.so"; exec "$@"'


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Of a start whose engine compiles into `root`, and which looks for a captured cache in `artifact`."""
    command = ["sh", "-c", COMPILE, "sh", sys.executable, str(ENGINE), "--host", "{host}", "--port", "{port}"]
    cache = {"BUILDER_COMPILE_CACHE_ROOT": str(tmp_path / "root"), "BUILDER_COMPILE_CACHE_DIR": str(tmp_path / "artifact")}
    return {"BUILDER_ENGINE_ARGS": json.dumps(command), "CACHE": str(tmp_path / "root"), **cache}


@pytest.fixture
def captured(serve: Serve, env: dict[str, str], tmp_path: Path) -> Path:
    """The artifact of a first start; the root is gone."""
    cold = serve(**env)
    cold.until_ready()
    assert phase(cold)["result"] == "none"
    assert "builder: compile-cache: compiled 1 new files, 0.0 MiB (inductor 1)\n" in cold.err.read_text()
    found = metrics(cold.get("/metrics")[1])
    assert (found["builder_compile_cache_hit"], found["builder_compile_cache_new_files"]) == (0, 1)
    assert cold.end() == 0
    with pytest.raises(SystemExit) as ended:
        run(["cache", "capture", "--from", str(tmp_path / "root"), "--to", str(tmp_path / "artifact"), "-q"])
    assert not ended.value.code
    shutil.rmtree(tmp_path / "root")
    return tmp_path / "artifact"


def phase(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = next(p["detail"] for p in served.get("/phases")[1] if p["phase"] == "compile_cache")
    return found


def test_a_start_that_hits_compiles_nothing(serve: Serve, env: dict[str, str], captured: Path) -> None:
    warm = serve(**env, BUILDER_COMPILE_CACHE="require")
    warm.until_ready()
    assert (phase(warm)["result"], phase(warm)["files"], phase(warm)["origin"]) == ("hit", 1, str(captured))
    found = metrics(warm.get("/metrics")[1])
    assert (found["builder_compile_cache_hit"], found["builder_compile_cache_new_files"]) == (1, 0)
    assert "compiled" not in warm.err.read_text()
    order = [p["phase"] for p in warm.get("/phases")[1]]
    assert order.index("weights_all") < order.index("compile_cache") < order.index("engine_init")


@pytest.mark.parametrize("changed", [{"HOME": "/elsewhere"}, {"TORCH_LOGS_ONCE_MORE": "1", "VLLM_X": "1"}])
def test_another_stack_is_told_or_refused(
    serve: Serve, env: dict[str, str], captured: Path, tmp_path: Path, changed: dict[str, str]
) -> None:
    refused = serve(**env, **changed, BUILDER_COMPILE_CACHE="require")
    assert refused.process.wait(BOUND_S) == 4
    name = next(iter(changed)) if len(changed) == 1 else "VLLM_X"
    assert f"env.{name}: captured with" in refused.err.read_text()
    assert not (tmp_path / "root/inductor").exists()  # the engine was not started
    told = serve(**env, **changed)
    told.until_ready()
    assert phase(told)["result"] == "differs"
    assert f"env.{name}: captured with" in told.err.read_text()
    assert metrics(told.get("/metrics")[1])["builder_compile_cache_new_files"] == 1


def test_a_damaged_cache_ends_the_start(serve: Serve, env: dict[str, str], captured: Path, tmp_path: Path) -> None:
    body = (captured / "files.tar").read_bytes()
    (captured / "files.tar").write_bytes(body.replace(b"compiled", b"c0mpiled"))
    for how in ("use", "require"):
        damaged = serve(**env, BUILDER_COMPILE_CACHE=how)
        assert damaged.process.wait(BOUND_S) == 3
        assert "inductor/k.so: sha256" in damaged.err.read_text()
    off = serve(**env, BUILDER_COMPILE_CACHE="off")
    off.until_ready()
    assert "compile_cache" not in [p["phase"] for p in off.get("/phases")[1]]


def test_a_missing_part_is_told(serve: Serve, env: dict[str, str], captured: Path, tmp_path: Path) -> None:
    """A cache for this very stack that lacks what the engine then compiles."""
    more = env | {"BUILDER_ENGINE_ARGS": env["BUILDER_ENGINE_ARGS"].replace("k.so", "other.so")}
    cold = serve(**more)
    cold.until_ready()
    cold.end()
    shutil.rmtree(captured)
    (tmp_path / "root/inductor/other.so").rename(tmp_path / "root/inductor/k.so")
    with pytest.raises(SystemExit):
        run(["cache", "capture", "--from", str(tmp_path / "root"), "--to", str(captured), "-q"])
    shutil.rmtree(tmp_path / "root")
    short = serve(**more, BUILDER_COMPILE_CACHE="require")
    short.until_ready()
    assert phase(short)["result"] == "hit"
    said = "compiled 1 new files, 0.0 MiB (inductor 1), though the captured cache is for this stack"
    assert said in short.err.read_text()
