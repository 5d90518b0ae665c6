"""The look inside, on real processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builder.errors import BuilderError
from builder.verify import checks, inside
from tests.bounds import BOUND_S

# A runtime by name only: it starts one child with the environment it was given, and waits.
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])  # builder.runtime"


@contextmanager
def running(**env: str) -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", PARENT], env=env, start_new_session=True)
    try:
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        deadline = time.monotonic() + BOUND_S
        while (
            not children.read_text().strip()
            or b"sleep" not in Path(f"/proc/{children.read_text().split()[0]}/cmdline").read_bytes()
        ):  # the forked child is still its parent until it has exec'd
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield child.pid
    finally:
        os.killpg(child.pid, 9)
        child.wait()


def look(pid: int, root: Path) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", inside.SCRIPT, str(root), str(pid)], capture_output=True, check=True)
    return inside.parse(done.stdout)


def test_it_sees_the_engines_own_environment(tmp_path: Path) -> None:
    with running(CUDA_MODULE_LOADING="LAZY", BUILDER_MODELS_ROOT=f"/nowhere:{tmp_path}") as pid:
        marker = tmp_path / ("a1" * 32) / ".builder"
        marker.mkdir(parents=True)
        (marker / "complete").write_text("sha256:" + "a1" * 32 + "\n")
        found = look(pid, Path("/unused"))
    assert checks.module_loading(found).ok
    assert checks.weights(found, "sha256:" + "a1" * 32).ok
    assert found["runtime_uid"] == os.getuid()


def test_eager_is_seen(tmp_path: Path) -> None:
    with running(CUDA_MODULE_LOADING="EAGER") as pid:
        found = checks.module_loading(look(pid, tmp_path))
    assert not found.ok
    assert "EAGER" in found.found


@pytest.mark.parametrize("output", [b"", b"Traceback: no module named json", b"[1]"])
def test_no_result_is_an_error(output: bytes) -> None:
    with pytest.raises(BuilderError, match="look inside"):
        inside.parse(output)
