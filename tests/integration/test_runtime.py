"""`python -m builder.runtime` as a whole: real processes and real signals; the engine is tests/servers/fake_engine.py."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builder.format.phases import parse_lines
from builder.runtime.drive import ask, run_level
from tests.bounds import BOUND_S
from tests.unit.transfer import build

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "tests" / "servers" / "fake_engine.py"


class Served:
    """A running `serve`. Its output goes to files, so that nothing blocks."""

    def __init__(self, folder: Path, store: Path, engine_args: tuple[str, ...], env: dict[str, str]) -> None:
        self.port, self.control = free_port(), free_port()
        self.out, self.err = folder / "out", folder / "err"
        command = [sys.executable, str(ENGINE), "--host", "{host}", "--port", "{port}", *engine_args]
        values = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "BUILDER_STORE": str(store),
            "BUILDER_MODEL": "m",
            "BUILDER_MODELS_ROOT": str(folder / "models"),
            "BUILDER_ENGINE": "command",
            "BUILDER_ENGINE_ARGS": json.dumps(command),
            "BUILDER_HOST": "127.0.0.1",
            "BUILDER_PORT": str(self.port),
            "BUILDER_CONTROL_PORT": str(self.control),
            "BUILDER_GRACE_S": "5",
            **env,
        }
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "builder.runtime", "serve"], env=values, stdout=out, stderr=err, cwd=folder
            )
        self.env = values

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.control, timeout=BOUND_S)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        return answer.status, json.loads(body) if path != "/metrics" else body.decode()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds()`; a control port that does not answer yet counts as no."""
        deadline = time.monotonic() + BOUND_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if holds():
                    return
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.02)
        raise AssertionError(f"it did not happen within {BOUND_S:g} s; log:\n{self.err.read_text()}")

    def until_ready(self) -> dict[str, Any]:
        self.until(lambda: self.get("/ready")[0] == 200)
        status: dict[str, Any] = self.get("/ready")[1]
        return status

    def engine_pid(self) -> int:
        self.until(lambda: self.get("/ready")[1]["engine_pid"] is not None)
        return int(self.get("/ready")[1]["engine_pid"])

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(BOUND_S)


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.model({"model.safetensors": os.urandom(5000), "config.json": b"{}"}).store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def serve(tmp_path: Path, store: Path) -> Iterator[Serve]:
    running: list[Served] = []

    def start(*engine_args: str, **env: str) -> Served:
        running.append(Served(tmp_path, store, engine_args, env))
        return running[-1]

    yield start
    for served in running:
        served.process.kill()
        served.process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def alive(pid: int) -> bool:
    """True while process `pid` runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def gone(pid: int) -> bool:
    deadline = time.monotonic() + BOUND_S
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def metrics(page: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[:1] != "#"}


def test_from_the_store_to_an_answer(serve: Serve, tmp_path: Path) -> None:
    served = serve(BUILDER_PHASES=str(tmp_path / "phases"), CUDA_MODULE_LOADING="LAZY", BUILDER_WARMUP_BATCH="1,2")
    status = served.until_ready()
    assert status["model"] == "m"
    assert ask(served.url, "m", "one two three").text == "three two one"
    environ = Path(f"/proc/{status['engine_pid']}/environ").read_bytes().split(b"\0")
    assert b"CUDA_MODULE_LOADING=LAZY" in environ
    shown = [p["phase"] for p in served.get("/phases")[1]]
    assert shown == ["runtime_import", "weights_first_layers", "weights_all", "engine_init", "first_token", "stable"]
    assert [p.phase for p in parse_lines(served.out.read_text().splitlines())] == shown
    assert [p.phase for p in parse_lines((tmp_path / "phases").read_text().splitlines())] == shown
    found = metrics(served.get("/metrics")[1])
    assert found["builder_ready"] == 1
    assert found["builder_weights_bytes"] == found["builder_weights_fetched_bytes"] == 5002
    assert found['builder_phase_seconds{phase="engine_init",lane="container"}'] > 0
    assert found["builder_unaccounted_seconds"] < found["builder_start_seconds"]
    assert served.end() == 0
    assert gone(status["engine_pid"])


def test_the_second_start_needs_no_store(serve: Serve, tmp_path: Path, store: Path) -> None:
    first = serve()
    first.until_ready()
    first.end()
    second = serve(BUILDER_STORE="")
    second.until_ready()
    assert metrics(second.get("/metrics")[1])["builder_weights_fetched_bytes"] == 0


def test_early_requests_are_held_and_answered(serve: Serve) -> None:
    served = serve("--start-s", "0.7")
    served.until(lambda: served.get("/ready")[0] == 503)
    report = run_level(served.url, "m", concurrency=8, requests=8, max_tokens=4)
    assert report.errors == 0, report.error_samples
    assert report.tokens == 32
    found = metrics(served.get("/metrics")[1])
    assert found["builder_queue_held_total"] >= 1
    assert found["builder_queue_depth"] == 0


def test_beyond_the_limit_it_is_503_with_retry_after_at_once(serve: Serve) -> None:
    served = serve("--start-s", "20", BUILDER_QUEUE_LIMIT="2")
    served.until(lambda: served.get("/ready")[0] == 503)
    held = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(2)]
    served.until(lambda: metrics(served.get("/metrics")[1])["builder_queue_depth"] == 2)
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=BOUND_S)
    connection.request("POST", "/v1/chat/completions", b"x" * 300_000)
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Retry-After")) == (503, "5")
    assert "2 requests are waiting" in json.loads(answer.read())["error"]["message"]
    assert time.monotonic() - began < 15  # the engine is there after 20
    connection.close()
    held[0].close()  # a client that gives up makes room
    served.until(lambda: metrics(served.get("/metrics")[1])["builder_queue_depth"] == 1)
    assert metrics(served.get("/metrics")[1])["builder_queue_rejected_total"] == 1
    served.process.send_signal(signal.SIGTERM)
    assert held[1].recv(12) == b"HTTP/1.1 503"
    held[1].close()


def test_without_a_queue_the_engine_has_the_public_port(serve: Serve) -> None:
    served = serve("--start-s", "0.5", BUILDER_QUEUE="0")
    served.until(lambda: served.get("/ready")[0] == 503)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served.port))
    served.until_ready()
    assert ask(served.url, "m", "a b").text == "b a"
    assert "builder_queue_depth" not in served.get("/metrics")[1]


def test_streamed_words_leave_as_they_come(serve: Serve) -> None:
    served = serve("--token-s", "0.15", BUILDER_WARMUP_TOKENS="1")
    served.until_ready()
    answer = ask(served.url, "m", "a b c d e f")
    assert answer.text == "f e d c b a"
    assert answer.total_s - answer.ttft_s > 0.6


def test_a_client_that_leaves_takes_its_engine_connection_along(serve: Serve, tmp_path: Path) -> None:
    served = serve("--token-s", "0.05", "--log", str(tmp_path / "log"), BUILDER_WARMUP_TOKENS="1")
    served.until_ready()
    body = json.dumps({"messages": [{"role": "user", "content": "w " * 400}], "max_tokens": 400})
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    connection.request("POST", "/v1/chat/completions", body)
    response = connection.getresponse()
    response.readline()
    response.close()
    connection.close()
    served.until(lambda: (tmp_path / "log").exists())
    served.until(lambda: metrics(served.get("/metrics")[1])["builder_relay_connections"] == 0)


@pytest.mark.parametrize(("die_with", "expected"), [("7", 7), ("0", 0), ("-9", 137), ("-11", 139)])
def test_an_engine_that_dies_early_gives_its_code(serve: Serve, die_with: str, expected: int) -> None:
    served = serve("--start-s", "20", "--die-s", "0.2", f"--die-with={die_with}")
    assert served.process.wait(BOUND_S) == expected
    assert f"ended by itself with exit code {expected} during step 'engine'" in served.err.read_text()


def test_an_engine_that_dies_in_its_first_answer_gives_its_code(serve: Serve) -> None:
    served = serve("--die-at-request", "1", "--die-with=9")
    assert served.process.wait(BOUND_S) == 9
    assert "first_token" not in served.out.read_text()


def test_an_engine_that_dies_after_ready_ends_the_container(serve: Serve) -> None:
    served = serve()
    os.kill(served.until_ready()["engine_pid"], signal.SIGKILL)
    assert served.process.wait(BOUND_S) == 137


def test_a_failing_health_check_makes_it_unready_and_back(serve: Serve, tmp_path: Path) -> None:
    flag = tmp_path / "sick"
    served = serve("--unhealthy-while", str(flag))
    served.until_ready()
    flag.touch()
    served.until(lambda: served.get("/ready")[0] == 503)
    assert served.get("/ready")[1]["reason"] == "the engine's /health answers 503"
    assert served.get("/live")[0] == 200
    flag.unlink()
    served.until_ready()


def test_the_engine_has_its_own_say_on_sigterm(serve: Serve) -> None:
    served = serve("--term-code", "5")
    served.until_ready()
    assert served.end() == 5


def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace_period(serve: Serve) -> None:
    served = serve("--term", "ignore", BUILDER_GRACE_S="0.5")
    pid = served.until_ready()["engine_pid"]
    began = time.monotonic()
    assert served.end() == 137
    assert 0.5 <= time.monotonic() - began < 20
    assert gone(pid)


def test_sigterm_before_there_is_an_engine(serve: Serve, tmp_path: Path, store: Path) -> None:
    """Another process holds the model's lock, so the fetch waits for it; the signal ends it nevertheless."""
    digest = (store / "refs" / "m").read_text().strip().removeprefix("sha256:")
    (tmp_path / "models").mkdir()
    lock = tmp_path / "models" / f".{digest}.lock"
    lock.touch()
    with subprocess.Popen(["flock", str(lock), "sleep", "30"], start_new_session=True) as holder:
        time.sleep(0.2)
        served = serve()
        served.until(lambda: served.get("/ready")[1]["step"] == "weights")
        assert served.end() == 143
        os.killpg(holder.pid, signal.SIGKILL)


def ignores(pid: int, number: int) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigIgn"], 16) >> (number - 1) & 1)


def test_an_engine_that_becomes_healthy_after_the_signal_is_not_ready(serve: Serve) -> None:
    served = serve("--start-s", "1.5", "--term", "ignore", BUILDER_GRACE_S="3")
    pid = served.engine_pid()
    served.until(lambda: ignores(pid, signal.SIGTERM))
    served.process.send_signal(signal.SIGTERM)
    seen = set()
    while served.process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            seen.add((served.get("/ready")[0], served.get("/ready")[1]["step"]))
        time.sleep(0.05)
    assert seen <= {(503, "engine"), (503, "stopping")}
    assert (503, "stopping") in seen
    assert served.process.returncode == 137
    assert not {"engine_init", "first_token", "stable"} & {p.phase for p in parse_lines(served.out.read_text().splitlines())}
    assert "builder: ready:" not in served.err.read_text()


def test_nothing_outlives_the_runtime(serve: Serve) -> None:
    served = serve()
    pid = served.until_ready()["engine_pid"]
    assert alive(pid)
    served.process.kill()
    served.process.wait()
    assert gone(pid)


def test_what_the_engine_started_ends_with_it(serve: Serve, tmp_path: Path) -> None:
    served = serve("--fork", str(tmp_path / "pid"))
    served.until_ready()
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    served.end()
    assert gone(pid)


def test_an_engine_that_stays_silent_is_an_error_with_a_hint(serve: Serve) -> None:
    served = serve("--start-s", "20", BUILDER_READY_TIMEOUT_S="0.5")
    pid = served.engine_pid()
    assert served.process.wait(BOUND_S) == 1
    assert "error: the engine did not answer /health with 200 within 0 s" in served.err.read_text()
    assert gone(pid)


@pytest.mark.parametrize(
    ("name", "value", "code", "said"),
    [
        ("BUILDER_QUEUE", "yes", 2, "BUILDER_QUEUE='yes': expected 0 or 1"),
        ("BUILDER_HOST", "no-such-host.invalid", 2, "BUILDER_HOST='no-such-host.invalid': "),
        ("BUILDER_PHASES", "/no/such/phases", 2, "BUILDER_PHASES='/no/such/phases': expected a file in a folder that exists"),
        ("BUILDER_STORE", "s3://a@b/c", 2, "BUILDER_STORE: the s3:// URL has credentials in it"),
        ("BUILDER_MODEL", "other", 3, "no model 'other'"),
        ("BUILDER_STORE", "/nowhere", 5, "no such folder"),
        ("BUILDER_ENGINE_ARGS", '["/no/such/program"]', 127, "program not found"),
        ("BUILDER_MODELS_ROOT", "/proc/models", 4, "no models root can be written"),
    ],
)
def test_causes_have_their_exit_codes(serve: Serve, name: str, value: str, code: int, said: str) -> None:
    served = serve(**{name: value})
    assert served.process.wait(BOUND_S) == code
    assert said in served.err.read_text()


def test_a_taken_port_is_named(serve: Serve) -> None:
    first = serve()
    first.until_ready()
    second = serve(BUILDER_PORT=str(first.port))
    assert second.process.wait(BOUND_S) == 4
    assert f"port {first.port} of 127.0.0.1" in second.err.read_text()


def test_a_taken_port_is_named_before_an_engine_without_a_queue_starts(serve: Serve, tmp_path: Path) -> None:
    """Else the other server's health would be taken for the engine's."""
    first = serve()
    first.until_ready()
    second = serve("--fork", str(tmp_path / "pid"), BUILDER_PORT=str(first.port), BUILDER_QUEUE="0")
    assert second.process.wait(BOUND_S) == 4
    assert f"port {first.port} of 127.0.0.1" in second.err.read_text()
    assert "hint: set BUILDER_PORT to a free port" in second.err.read_text()
    assert not (tmp_path / "pid").exists()


def test_probe_and_prefetch(serve: Serve) -> None:
    served = serve()

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "builder.runtime", *command]
        return subprocess.run(argv, env=served.env, capture_output=True, text=True, check=False)

    served.until_ready()
    assert run("probe", "ready").returncode == 0
    assert run("probe", "live").returncode == 0
    found = json.loads(run("prefetch").stdout)
    assert found["fetched_bytes"] == 0
    assert Path(found["folder"], "config.json").read_bytes() == b"{}"
    served.end()
    after = run("probe", "ready")
    assert (after.returncode, "control port" in after.stderr) == (1, True)
    served.env["BUILDER_CONTROL_PORT"] = "99999"
    wrong = run("probe", "ready")
    assert (wrong.returncode, "BUILDER_CONTROL_PORT='99999'" in wrong.stderr) == (2, True)
    served.env |= {"BUILDER_CONTROL_PORT": "8001", "BUILDER_PHASES": "/no/such/phases"}
    refused = run("prefetch")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "BUILDER_PHASES" in refused.stderr


def test_selftest_proves_the_claims(serve: Serve) -> None:
    served = serve()  # only for its environment
    served.end(signal.SIGKILL)
    argv = [
        sys.executable,
        "-m",
        "builder.runtime",
        "selftest",
        "--prompt",
        "red green",
        "--concurrency",
        "1,3",
        "--requests",
        "3",
    ]
    env = {**served.env, "CUDA_MODULE_LOADING": "LAZY"}
    done = subprocess.run([*argv, "--contains", "green"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["answer"]["text"] == "green red"
    assert [level["errors"] for level in result["load"]] == [0, 0]
    assert result["environment"]["CUDA_MODULE_LOADING"] == "LAZY"
    assert [p["phase"] for p in result["phases"]][-1] == "stable"
    env["CUDA_MODULE_LOADING"] = "EAGER"
    done = subprocess.run([*argv, "--contains", "blue"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    failures = json.loads(done.stdout)["failures"]
    assert any("'blue' is not in 'green red'" in f for f in failures)
    assert any("expected 'LAZY'" in f for f in failures)


def test_many_requests_through_the_gate(serve: Serve) -> None:
    """Every byte arrives: 200 answers over 16 connections, none damaged."""
    served = serve(BUILDER_WARMUP_TOKENS="1")
    served.until_ready()
    wrong: list[str] = []

    def worker(n: int) -> None:
        for i in range(12):
            words = [f"w{n}x{i}x{j}" for j in range(10)]
            answer = ask(served.url, "m", " ".join(words))
            if answer.text != " ".join(reversed(words)):
                wrong.append(answer.text)

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
