"""The logs of BuildKit and buildah become steps, and one error."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from builder.errors import BuilderError, CapabilityError, RemoteError
from builder.image.backends import log
from builder.image.backends.faults import fault
from builder.image.backends.log import BuildahLog, BuildKitLog
from builder.progress import NoProgress
from tests.bounds import BOUND_S


class Recorder(NoProgress):
    def __init__(self) -> None:
        self.titles: list[str] = []
        self.ends: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def add(self, title: str, total: int = 0, unit: str = "B") -> int:
        self.titles.append(title)
        return len(self.titles) - 1

    def note(self, task: int, text: str) -> None:
        self.notes.append(text)

    def done(self, task: int, text: str = "") -> None:
        self.ends.append((self.titles[task], text))


BUILDKIT = """\
#0 building with "default" instance using docker driver
#5 [base 1/2] FROM docker.io/library/debian:bookworm-slim
#5 CACHED
#6 [base 2/2] RUN sh /steps/apt python3
#6 0.512 Get:1 http://deb.example.com
#6 DONE 8.2s
#9 [wheels 3/3] RUN sh /steps/wheels index /requirements/engine.txt
#9 1.204 ERROR: Could not find a version that satisfies the requirement torch==9
#9 1.204 ERROR: No matching distribution found for torch==9
#9 ERROR: process "/bin/sh -c ..." did not complete successfully: exit code: 1
------
 > [wheels 3/3] RUN sh ...:
------
ERROR: failed to solve: process did not complete successfully
"""
# buildah 1.28.2, cut.
BUILDAH = """\
[1/2] STEP 1/2: FROM debian:bookworm-slim AS base
[1/2] STEP 2/2: RUN sh /steps/apt python3
--> Using cache 0b3ad73e15523582df7b4020eb0a82a973a58169da605d291e609d92f9243345
--> 0b3ad73e155
[2/2] STEP 1/3: FROM 0b3ad73e15523582df7b4020eb0a82a973a58169da605d291e609d92f9243345 AS smoke
[2/2] STEP 2/3: RUN python3 -c 'import torch'
Traceback (most recent call last):
ModuleNotFoundError: No module named 'torch'
time="2026-11-21T18:59:17Z" level=warning msg="HEALTHCHECK is not supported for OCI image format"
Error: building at STEP "RUN python3 -c 'import torch'": while running runtime: exit status 1
"""


def feed(one: log.Log, text: str) -> None:
    for line in text.splitlines():
        one.feed(line)
    one.close()


def test_buildkit_steps_and_the_failing_ones_own_lines() -> None:
    recorder = Recorder()
    one = BuildKitLog(recorder)
    feed(one, BUILDKIT)
    assert recorder.titles == ["image: base 1/2", "image: base 2/2", "image: wheels 3/3"]
    assert recorder.ends == [("image: base 1/2", "cached"), ("image: base 2/2", ""), ("image: wheels 3/3", "failed")]
    assert "Get:1 http://deb.example.com" in recorder.notes
    error = log.failure(1, ["docker"], one)
    assert error.message == "image build failed in step wheels 3/3: no wheel of torch==9 was found"
    assert "wheelhouse" in error.hint


def test_the_steps_of_several_platforms_are_told_apart() -> None:
    recorder = Recorder()
    feed(BuildKitLog(recorder), "#5 [linux/arm64 base 2/2] RUN x\n#6 [linux/amd64 base 2/2] RUN x\n#6 DONE 1s\n#5 CANCELED\n")
    assert recorder.ends == [("image: base 2/2 (linux/amd64)", ""), ("image: base 2/2 (linux/arm64)", "cancelled")]


def test_buildah_steps_and_the_failing_ones_own_lines() -> None:
    recorder = Recorder()
    one = BuildahLog(recorder)
    feed(one, BUILDAH)
    assert recorder.titles == ["image: base 1/2", "image: base 2/2", "image: smoke 1/3", "image: smoke 2/3"]
    assert recorder.ends[1] == ("image: base 2/2", "cached")
    assert recorder.ends[-1] == ("image: smoke 2/3", "failed")
    error = log.failure(1, ["buildah"], one)
    assert error.message.startswith("image build failed in step smoke 2/3: RUN python3")
    assert "HEALTHCHECK" not in error.message
    assert "no module torch" in error.hint
    assert error.where == {"step": "smoke 2/3: RUN python3 -c 'import torch'"}


def test_a_failure_outside_any_step_shows_the_last_lines_and_the_command() -> None:
    one = BuildKitLog(NoProgress())
    one.feed("ERROR: failed to solve: something else")
    error = log.failure(1, ["docker", "buildx"], one)
    assert "something else" in error.message
    assert "docker buildx" in error.message


def test_every_step_ends_even_when_the_log_stops() -> None:
    recorder = Recorder()
    feed(BuildKitLog(recorder), "#6 [base 2/2] RUN x")
    feed(BuildahLog(recorder), "STEP 1/2: FROM x")
    assert recorder.ends == [("image: base 2/2", ""), ("image: stage-1 1/2", "")]


def test_a_full_disk_is_named_where_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = BuildKitLog(NoProgress())
    one.feed("ERROR: failed to solve: error writing to tar: write /x/i.tar: no space left on device")
    error = log.failure(1, ["docker"], one, [tmp_path])
    assert isinstance(error, CapabilityError)
    assert "no space left on a disk" in error.message  # this one has room, so it is not accused
    monkeypatch.setattr(log, "FULL_BYTES", 1 << 62)
    assert f"no space left on {tmp_path}" in log.failure(1, ["docker"], one, [tmp_path]).message


def test_a_child_that_is_killed_is_told_so() -> None:
    command = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"]
    with pytest.raises(BuilderError, match="was killed by SIGKILL"):
        log.run(command, BuildKitLog(NoProgress()))


def test_a_missing_program_exits_4() -> None:
    with pytest.raises(CapabilityError, match="program not found"):
        log.run(["builder-has-no-such-program"], BuildKitLog(NoProgress()))


def test_an_interrupt_stops_the_whole_group(tmp_path: Path) -> None:
    """The child's own child too: docker starts buildx as one."""
    told = tmp_path / "pids"
    text = f"sleep 600 & echo $! >{told}; echo '#1 [a 1/1] RUN x'; wait"

    class Interrupting(NoProgress):
        def add(self, title: str, total: int = 0, unit: str = "B") -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log.run(["sh", "-c", text], BuildKitLog(Interrupting()))
    number = int(told.read_text())
    deadline = time.monotonic() + BOUND_S
    while not _ended(number):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _ended(number: int) -> bool:
    """Gone, or dead and not yet collected by whoever inherited it."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    ("said", "kind", "hint"),
    [
        ("OSError: [Errno 28] No space left on device", CapabilityError, "TMPDIR"),
        ("ModuleNotFoundError: No module named 'asyncio'", BuilderError, "no module asyncio"),
        ("exec /bin/sh: exec format error", CapabilityError, "qemu-user-static"),
        ("Temporary failure in name resolution\nERROR: No matching distribution found", RemoteError, "build_network"),
        ("anything else", BuilderError, ""),
    ],
)
def test_what_tools_print_becomes_an_error_and_a_next_step(said: str, kind: type[BuilderError], hint: str) -> None:
    error = fault("the build failed", f"\n  {said}", step="base 1/1")
    assert type(error) is kind
    assert hint in error.hint
    assert bool(error.hint) is bool(hint)
    assert error.where == {"step": "base 1/1"}
