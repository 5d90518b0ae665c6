"""Starting without an image: what is refused before anything starts, and that nothing stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from builder.errors import BuilderError, CapabilityError
from builder.progress import NoProgress
from builder.verify import in_place, server
from builder.verify.launch import Launch
from tests.bounds import BOUND_S

DIGEST = "sha256:" + "a1" * 32


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("engine", "says"), [("abacus", "does not run in place"), ("vllm", "does not run in place")])
def test_an_engine_that_cannot_run_here_is_refused(engine: str, says: str) -> None:
    with pytest.raises(CapabilityError, match=says):
        in_place.need_engine(engine)


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(in_place.MODULES, "llama.cpp", ("xllamacpp_not_there",))
    with pytest.raises(CapabilityError, match="xllamacpp_not_there, which is not installed"):
        in_place.need_engine("llama.cpp")


def test_a_start_that_fails_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(in_place.MODULES, "llama.cpp", ())
    launch = Launch("m", DIGEST, str(tmp_path), "llama.cpp", credentials={"AWS_SECRET_ACCESS_KEY": "s3cr3t-key"})
    with (
        pytest.raises(BuilderError, match="ended before it was ready: exit status") as caught,
        in_place.start(launch, environ={}) as running,
    ):
        server.wait_ready(running, timeout_s=BOUND_S, progress=NoProgress(), title="start")
    assert DIGEST in caught.value.message  # the runtime's own last line
    assert not alive(running.child.pid)
    assert not running.root.exists()


def test_leaving_early_ends_the_whole_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(in_place.MODULES, "llama.cpp", ())
    launch = Launch("m", DIGEST, str(tmp_path), "llama.cpp")
    seen: list[int] = []

    def interrupted() -> None:
        with in_place.start(launch, environ={}) as running:
            seen.append(running.child.pid)
            assert running.asked <= running.started() <= time.time()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not alive(seen[0])
