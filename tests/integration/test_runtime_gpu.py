"""Which GPU and driver `serve` refuses, with a strict libcuda.so.1 of our own (tests/servers/fakecuda.c)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builder.format.phases import parse_lines
from tests.bounds import BOUND_S
from tests.conftest import missing
from tests.integration.test_runtime import ROOT, Served, alive
from tests.servers.objects import ObjectServer
from tests.unit.transfer import build

SOURCE = Path(__file__).parents[1] / "servers" / "fakecuda.c"
H100, A100 = "NVIDIA H100 80GB HBM3=9.0", "NVIDIA A100-SXM4-80GB=8.0"
Start = Callable[..., Served]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libcuda.so.1 and libnvidia-ml.so.1."""
    if not shutil.which("gcc"):
        missing("gcc", "there is no gcc to build tests/servers/fakecuda.c with")
    folder = tmp_path_factory.mktemp("driver")
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        command = ["gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{name}"]
        subprocess.run([*command, "-o", str(folder / name), str(SOURCE)], check=True)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.model({"model.safetensors": os.urandom(20_000), "config.json": b"{}"}).store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def start(tmp_path: Path, store: Path, libraries: Path) -> Iterator[Start]:
    """`start(**env)`: a server that needs a GPU, on a node with one H100 and a driver of CUDA 13.0, unless `env` says else."""
    running: list[Served] = []

    def begin(**env: str) -> Served:
        values = {
            "LD_LIBRARY_PATH": str(libraries),
            "FAKECUDA_VERSION": "13000",
            "FAKECUDA_DEVICES": H100,
            "FAKECUDA_RELEASE": "580.65.06",
            "FAKECUDA_LOG": str(tmp_path / "calls"),
            "BUILDER_GPU": "required",
            "BUILDER_GPU_ARCHS": "9.0",
            "BUILDER_CUDA": "13.0",
        }
        running.append(Served(tmp_path, store, ("--fork", str(tmp_path / "engine")), values | env))
        return running[-1]

    yield begin
    for served in running:
        served.process.kill()
        served.process.wait()


def refused(served: Served) -> str:
    """The error's line, of a server that ended with 4 before it started an engine, and said nothing more but a hint."""
    assert served.process.wait(BOUND_S) == 4, served.err.read_text()
    text = served.err.read_text()
    assert "Traceback" not in text
    assert not (served.err.parent / "engine").exists()
    [(line, hint)] = re.findall(r"^error: (.+)\n\nhint: (.+)\n\Z", text, re.MULTILINE)
    assert hint
    return str(line)


def test_the_gpu_it_was_made_for(start: Start, tmp_path: Path) -> None:
    served = start(FAKECUDA_DEVICES=f"{H100};NVIDIA H200=9.0")
    served.until_ready()
    [timed] = [p for p in parse_lines(served.out.read_text().splitlines()) if p.phase == "cuda_init"]
    assert timed.detail["devices"] == 2
    assert timed.detail.keys() == {"devices", "init_s", "context_s", "process"}
    assert (tmp_path / "calls").read_text().splitlines().count("cuDevicePrimaryCtxRetain") == 1
    assert served.end() == 0


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (
            {"FAKECUDA_DEVICES": f"{A100};{H100};NVIDIA L4=8.9"},
            "this image has GPU code for compute capability 9.0 only (BUILDER_GPU_ARCHS), and cannot run on GPU 0 (NVIDIA "
            "A100-SXM4-80GB, compute capability 8.0), GPU 2 (NVIDIA L4, compute capability 8.9)",
        ),
        (
            {"FAKECUDA_VERSION": "12040", "FAKECUDA_RELEASE": "550.54.15"},
            "driver 550.54.15 supports CUDA 12.4 at most, and this image needs CUDA 13.0 (BUILDER_CUDA)",
        ),
        (
            {"FAKECUDA_VERSION": "12090", "FAKECUDA_FAULT": "nvmlInit_v2=9"},
            "this node's driver supports CUDA 12.9 at most, and this image needs CUDA 13.0 (BUILDER_CUDA)",
        ),
        ({"FAKECUDA_DEVICES": ""}, "no GPU can be used: cuInit: CUDA_ERROR_NO_DEVICE (100)"),
        (
            {"CUDA_VISIBLE_DEVICES": "7"},
            "cuInit: CUDA_ERROR_NO_DEVICE (100); there is no /dev/nvidiactl; CUDA_VISIBLE_DEVICES='7'",
        ),
        ({"FAKECUDA_FAULT": "cuInit=803"}, "no GPU can be used: cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"),
        ({"FAKECUDA_FAULT": "cuInit=804"}, "no GPU can be used: cuInit: CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE (804)"),
        ({"FAKECUDA_FAULT": "cuInit=9999"}, "no GPU can be used: cuInit: CUresult (9999)"),
        ({"FAKECUDA_FAULT": "cuInit=crash"}, "no GPU can be used: cuInit crashed (SIGSEGV)"),
        ({"FAKECUDA_FAULT": "cuDeviceGetName=crash"}, "no GPU can be used: cuDeviceGetName crashed (SIGSEGV)"),
        ({"FAKECUDA_FAULT": "cuInit=exit"}, "no GPU can be used: cuInit ended the process with exit code 9"),
        (
            {"FAKECUDA_FAULT": "cuInit=hang", "BUILDER_GPU_TIMEOUT_S": "0.5"},
            "no GPU can be used: cuInit did not return within 0.5 s",
        ),
        ({"LD_LIBRARY_PATH": ""}, "no GPU can be used: libcuda.so.1: cannot open shared object file"),
    ],
    ids=lambda value: "-".join(value.values())[:40] or "none" if isinstance(value, dict) else "",
)
def test_what_is_refused_and_how(start: Start, env: dict[str, str], line: str) -> None:
    assert line in refused(start(**env))


LATE = """
import os, signal
from asyncio import selector_events as events
close = events.BaseSelectorEventLoop._close_self_pipe
def late(loop):
    close(loop)
    os.kill(os.getpid(), signal.SIGCHLD)
events.BaseSelectorEventLoop._close_self_pipe = late
"""


def test_a_child_that_ends_as_the_event_loop_closes_says_nothing(start: Start, tmp_path: Path) -> None:
    """The loop closes the socket that signals wake it with before it forgets its handlers."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(LATE)
    refused(start(FAKECUDA_DEVICES="", PYTHONPATH=f"{tmp_path / 'site'}:{ROOT}"))


def test_a_device_that_is_not_visible_does_not_count(start: Start) -> None:
    start(FAKECUDA_DEVICES=f"{A100};{H100}", CUDA_VISIBLE_DEVICES="1").until_ready()


def test_a_context_that_fails_is_recorded_and_refuses_nothing(start: Start) -> None:
    served = start(FAKECUDA_FAULT="cuDevicePrimaryCtxRetain=2")
    served.until_ready()
    [timed] = [p for p in parse_lines(served.out.read_text().splitlines()) if p.phase == "cuda_init"]
    assert timed.detail["error"] == "cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY (2)"


def test_a_context_that_hangs_does_not_outlive_the_start(start: Start) -> None:
    """It would hold device memory that the engine needs."""
    served = start(FAKECUDA_FAULT="cuDevicePrimaryCtxRetain=hang")
    served.until(lambda: asking(served) != [])
    served.until_ready()
    served.until(lambda: asking(served) == [])


def asking(served: Served) -> list[str]:
    """The programs that this server has ask the driver."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent, command = (path / "stat").read_text().rpartition(")")[2].split()[1], (path / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == served.process.pid and "cuda.py" in command:
            found.append(path.name)
    return found


@pytest.mark.parametrize("mode", ["none", "auto"])
def test_without_a_need_no_driver_is_loaded(start: Start, tmp_path: Path, mode: str) -> None:
    """auto looks only where the container runtime has put a device; where this test runs with one, it may look."""
    served = start(BUILDER_GPU=mode, FAKECUDA_DEVICES=A100)
    served.until_ready()
    assert (mode == "auto" and Path("/dev/nvidiactl").exists()) or not (tmp_path / "calls").exists()


def test_it_is_refused_while_the_weights_wait(start: Start, tmp_path: Path, store: Path) -> None:
    """Another process holds the model's lock, so that the fetch takes for ever."""
    digest = (store / "refs" / "m").read_text().strip().removeprefix("sha256:")
    (tmp_path / "models").mkdir()
    lock = tmp_path / "models" / f".{digest}.lock"
    lock.touch()
    with subprocess.Popen(["flock", str(lock), "sleep", "60"], start_new_session=True) as holder:
        assert "NVIDIA A100" in start_refused(start)
        assert alive(holder.pid)
        os.killpg(holder.pid, 9)


def start_refused(start: Start) -> str:
    served = start(FAKECUDA_DEVICES=A100)
    assert served.process.wait(BOUND_S) == 4
    return served.err.read_text()


def test_a_load_that_is_cut_short_leaves_nothing_that_looks_complete(start: Start, tmp_path: Path, store: Path) -> None:
    """One object never comes. What was fetched is kept for the next start, under a name that nobody takes for a model."""
    models = tmp_path / "models"
    folder = tmp_path / "http" / "b"
    shutil.copytree(store, folder)
    last = sorted(p.name for p in (folder / "chunks").rglob("*") if p.is_file())[-1]
    waiting = ObjectServer(folder.parent, plan=lambda key, asked: "silent" if key.endswith(last) else "")
    with waiting as server:
        env = {"BUILDER_STORE": f"{server.endpoint_url}/b", "BUILDER_CONCURRENCY": "2"}
        slow = {"FAKECUDA_FAULT": "cuInit=hang", "BUILDER_GPU_TIMEOUT_S": "2"}
        served = start(**env, **slow)
        assert served.process.wait(BOUND_S) == 4
        assert "cuInit did not return within 2 s" in served.err.read_text()
        assert sum(server.served.values()) > 3, "the load had begun"
    assert [p for p in models.iterdir() if not p.name.startswith(".")] == []
    assert list(models.rglob("complete")) == []
    start().until_ready()  # the whole store
    [found] = [p for p in models.iterdir() if not p.name.startswith(".")]
    assert (found / "model.safetensors").stat().st_size == 20_000
