from __future__ import annotations

import sys
from pathlib import Path

import pytest

from builder import process
from builder.errors import BuilderError, CapabilityError


def test_a_failure_shows_the_command_ready_to_paste_and_its_last_words() -> None:
    with pytest.raises(BuilderError) as caught:
        process.run([sys.executable, "-c", "import sys; sys.exit('no such thing')"], hint="try b")
    assert "exit status 1 from: " in caught.value.message
    assert "'import sys; sys.exit('" in caught.value.message
    assert caught.value.message.endswith("\n  no such thing")
    assert caught.value.hint == "try b"


def test_a_missing_program_is_the_environments_fault() -> None:
    with pytest.raises(CapabilityError, match="no-such-program: program not found"):
        process.run(["no-such-program"])
    with pytest.raises(CapabilityError) as caught:
        process.need("no-such-program", "some-package")
    assert caught.value.hint == "apt-get install some-package"


def test_a_hanging_program_is_ended() -> None:
    with pytest.raises(BuilderError, match="no answer within 0 s"):
        process.run(["sleep", "10"], timeout_s=0.1)


def test_programs_in_sbin_are_found_whatever_path_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert process.which("losetup") in (Path("/usr/sbin/losetup"), Path("/sbin/losetup"))
