"""`builder verify` on a real engine with the demo image and the real SmolLM2: what holds, and each way it can fail.

A start costs seconds of both cores, so the claims are tested on two whole starts, and the ways of reaching the weights
on starts that end as soon as the weights are there.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder import pipeline
from builder.config.load import parse
from builder.config.spec import Verify
from builder.engines.local import LocalEngine
from builder.errors import BudgetError, BuilderError, CapabilityError, ClaimError
from builder.format.phases import Phase
from builder.format.volume import model_dir
from builder.models.source import ModelRef
from builder.stores import rclone
from builder.stores.open import open_store
from builder.transfer.source import open_source
from builder.verify import container, launch, page, server
from builder.verify.container import Options
from builder.verify.launch import Launch
from builder.verify.report import VerifyReport, dumps, loads
from builder.verify.run import verify_image
from tests.bounds import BOUND_S
from tests.models import smollm2

pytestmark = pytest.mark.docker
NAME = "smollm2-135m"
QUESTION = "What is the capital of France? Answer in one sentence."
SHORT = {"BUILDER_WARMUP_BATCH": "1", "BUILDER_WARMUP_TOKENS": "8"}  # a warm-up of seconds, not minutes, on a busy machine


def settings(**changes: Any) -> Verify:
    base = Verify.model_validate(
        {
            "expect": {"prompt": QUESTION, "contains": "paris"},
            "load": {"concurrency": (1, 2), "requests": 2, "max_tokens": 4},
            "budget": {"cold_start_p95": "5min", "image_size": "1GB"},
        }
    )
    return base.model_copy(update=changes)


@pytest.fixture(scope="module")
def folder_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    folder.chmod(0o755)  # read by the user of the image
    publish(str(folder))
    return folder


@pytest.fixture(autouse=True)
def nothing_stays(docker_engine: str) -> Iterator[None]:
    before = containers()
    yield
    assert containers() <= before


def containers() -> set[str]:
    """Of testcontainers, on this engine."""
    command = ["docker", "ps", "-aq", "--filter", "label=org.testcontainers"]
    return set(subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())


def publish(url: str, endpoint_url: str | None = None) -> str:
    """SmolLM2 in the store; its manifest's digest."""
    store = open_store(url, endpoint_url=endpoint_url)
    ref = ModelRef(source=str(smollm2()))
    return pipeline.publish_weights(ref, store, LocalEngine(4), name=NAME, chunk_bytes=16 << 20).manifest.digest


def asked(store: str, digest: str, endpoint_url: str | None = None, **changes: Any) -> Launch:
    credentials = launch.credentials(os.environ)
    return Launch(NAME, digest, store, "llama.cpp", endpoint_url=endpoint_url, credentials=credentials, **changes)


def until_weights(reference: str, what: Launch, options: Options | None = None) -> tuple[Phase, list[str]]:
    """The weights_all phase of a start, which is then stopped; and the notes."""
    with container.start(reference, what, options) as running:
        deadline = time.monotonic() + BOUND_S
        while time.monotonic() < deadline:
            assert running.ended() is None, running.logs(20)
            if found := [p for p in server.phases(running) if p.phase == "weights_all"]:
                return found[0], running.notes
            time.sleep(0.1)
    pytest.fail("no weights in time")


@pytest.mark.s3
def test_a_good_image_holds_all_its_claims(demo_image: Any, s3: Any) -> None:
    digest = publish(s3.url, s3.endpoint_url)
    what = asked(s3.url, digest, s3.endpoint_url)
    report = verify_image(demo_image.reference, what, settings(), options=Options(env=SHORT, read_only=True), timeout_s=BOUND_S)
    report.raise_for_failures()
    ids = {c.id for c in report.checks}
    assert {"answer.contains", "answer.deterministic", "engine.module-loading", "image.user", "weights.manifest"} <= ids
    assert {"ready.said-no-first", "ready.after-first-token", "metrics.phases", "load.1", "load.2"} <= ids
    assert report.answer.text == "The capital of France is Paris."
    (run,) = report.runs
    assert {p.lane for p in run.phases} == {"host", "container"}
    assert 0 <= run.unaccounted_s < run.cold_start_s
    assert report.image is not None
    assert report.image.digest == demo_image.digest
    check_pages(report, s3.env["AWS_SECRET_ACCESS_KEY"])


def check_pages(report: VerifyReport, secret: str) -> None:
    text = dumps(report)
    assert loads(text) == report
    for page_text in (text, page.markdown(report), page.html(report)):
        assert secret not in page_text
        assert "Paris" in page_text


def test_a_bad_image_is_told_everything_that_is_wrong(demo_image: Any, folder_store: Path) -> None:
    digest = publish(str(folder_store))
    verify = settings(
        expect=settings().expect.model_copy(update={"contains": "zebra"}),
        budget=Verify.model_validate({"budget": {"cold_start_p95": "1ms", "image_size": "1kB"}}).budget,
    )
    options = Options(env={**SHORT, "CUDA_MODULE_LOADING": "EAGER"})
    report = verify_image(demo_image.reference, asked(str(folder_store), digest), verify, options=options, timeout_s=BOUND_S)
    with pytest.raises(ClaimError) as wrong:
        report.raise_for_failures()
    assert wrong.value.where["checks"] == ["answer.contains", "engine.module-loading"]
    assert "EAGER" in wrong.value.message
    with pytest.raises(BudgetError) as slow:
        replace(report, checks=()).raise_for_failures()
    assert slow.value.where["budgets"] == ["cold_start_p95", "image_size"]


def test_a_container_that_ends_is_not_waited_for(demo_image: Any, folder_store: Path) -> None:
    started = time.monotonic()
    with pytest.raises(BuilderError, match=r"exit status 2") as caught:
        verify_image(
            demo_image.reference, asked(str(folder_store), "sha256:" + "0" * 64), settings(),
            options=Options(env={"BUILDER_ENGINE": "abacus"}), timeout_s=BOUND_S,
        )  # fmt: skip
    assert "abacus" in caught.value.message
    assert time.monotonic() - started < BOUND_S


def test_weights_that_are_not_there_end_the_start(demo_image: Any, folder_store: Path) -> None:
    with pytest.raises(BuilderError, match=r"exit status [35]") as caught:
        verify_image(demo_image.reference, asked(str(folder_store), "sha256:" + "0" * 64), settings(), timeout_s=BOUND_S)
    assert "sha256:0000" in caught.value.message


def test_a_server_that_is_never_ready_meets_the_deadline(demo_image: Any, folder_store: Path) -> None:
    digest = publish(str(folder_store))
    with pytest.raises(BuilderError, match=r"not ready after 1 s"):
        verify_image(demo_image.reference, asked(str(folder_store), digest), settings(), timeout_s=0.6)


@pytest.mark.s3
def test_a_store_on_loopback_is_reached_too(demo_image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    with rclone.serve(tmp_path, host="127.0.0.1") as endpoint:
        for name, value in endpoint.env.items():
            monkeypatch.setenv(name, value)
        digest = publish("s3://models", endpoint.endpoint_url)
        phase, notes = until_weights(demo_image.reference, asked("s3://models", digest, endpoint.endpoint_url))
    assert phase.detail["fetched_bytes"] == smollm2().stat().st_size
    assert any("loopback only" in note for note in notes)


def test_weights_of_the_node_are_used_and_nothing_is_fetched(demo_image: Any, folder_store: Path, tmp_path: Path) -> None:
    digest = publish(str(folder_store))
    tmp_path.chmod(0o755)  # read by another user, as a node's folder is
    pipeline.restore_weights(open_source(str(folder_store)), digest, model_dir(tmp_path, digest))
    phase, _ = until_weights(demo_image.reference, asked(str(tmp_path / "no-store"), digest, models=str(tmp_path)))
    assert phase.detail.get("fetched_bytes", 0) == 0


def test_an_image_that_is_not_there_is_never_pulled() -> None:
    with pytest.raises(CapabilityError, match="no such image") as caught:
        verify_image("builder-test/nothing:none", asked("/nowhere", "sha256:" + "0" * 64), settings())
    assert caught.value.exit_code == 4


def test_a_gpu_that_is_required_and_missing_is_exit_4(demo_image: Any, folder_store: Path) -> None:
    if container.wants_gpu("auto"):
        pytest.skip("this machine has one")
    with pytest.raises(CapabilityError, match=r"verify\.gpu is required"):
        verify_image(
            demo_image.reference, asked(str(folder_store), "sha256:" + "0" * 64), settings(), options=Options(gpu="required")
        )


def test_a_cancelled_command_leaves_no_container(demo_image: Any, folder_store: Path, tmp_path: Path) -> None:
    text = f"""
version: 1
name: {NAME}
model: {{source: m.gguf}}
weights: {{store: {folder_store}}}
image: {{repository: {demo_image.reference.rpartition(":")[0]}, engine: {{name: llama.cpp, version: "1.0"}}}}
"""
    parse(text.encode(), "builder.yaml")
    (tmp_path / "builder.yaml").write_text(text)
    before = containers()
    command = [sys.executable, "-c", "from builder.cli import main; main()", "verify", "--image", demo_image.reference]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + BOUND_S
    while not containers() - before:
        assert child.poll() is None, child.stdout.read() if child.stdout else b""
        assert time.monotonic() < deadline
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    assert child.wait(BOUND_S) == 128 + signal.SIGTERM
    if child.stdout:
        assert not re.search(rb"Traceback", child.stdout.read())
        child.stdout.close()
    assert containers() <= before
