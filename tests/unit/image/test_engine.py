"""Finding BuildKit, its command line, and reading its log; with no engine and no network."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from builder.errors import CapabilityError, IntegrityError
from builder.image import engine
from builder.image.engine import Backend, Log, Options
from builder.progress import NoProgress

BUILDX = Backend("26.1.5", buildx=True, containerd=True)
CLASSIC = Backend("20.10.24", buildx=False, containerd=False)


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


def program(folder: Path, text: str) -> None:
    """A `docker` that says `text`, first on PATH."""
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_no_docker_exits_4_and_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CapabilityError, match="needs a Docker engine") as caught:
        engine.find()
    assert (caught.value.exit_code, caught.value.hint) == (
        4,
        "install Docker 26 or newer with buildx (in a checkout: make engine)",
    )


def test_docker_without_an_engine_exits_4(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(CapabilityError, match="Cannot connect to the Docker daemon") as caught:
        engine.find()
    assert caught.value.hint == "install Docker 26 or newer with buildx (in a checkout: make engine)"


def test_an_engine_too_old_for_buildkit_exits_4(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "case $1 in version) echo 17.12.0 ;; *) exit 1 ;; esac")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(CapabilityError, match=r"Docker 17\.12\.0 has no BuildKit"):
        engine.find()


def test_classic_engine_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, 'case $1 in version) echo 20.10.24 ;; info) echo \'[["Backing","extfs"]]\' ;; *) exit 1 ;; esac')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert engine.find() == CLASSIC


def test_a_missing_base_names_the_command_that_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, 'echo "pull access denied" >&2; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(CapabilityError, match="slim is not here and cannot be pulled: pull access denied") as caught:
        engine.base_digest("debian:bookworm-slim")
    assert caught.value.hint == "make base"


def test_secrets_travel_as_files_never_as_values(tmp_path: Path) -> None:
    options = Options({"ca": tmp_path / "ca.pem", "pip_conf": tmp_path / "pip.conf"}, "host", no_cache=True)
    command = engine._command(tmp_path, "r/m:1", tmp_path / "i.tar", BUILDX, options)
    assert f"--secret=id=ca,src={tmp_path}/ca.pem" in command
    assert f"--secret=id=pip_conf,src={tmp_path}/pip.conf" in command
    assert "--network=host" in command
    assert "--no-cache" in command
    values = [word for word in command if word.startswith("--build-arg=") and word.count("=") > 1]
    assert values == [f"--build-arg=SOURCE_DATE_EPOCH={engine.EPOCH}"]  # proxies go by name alone


def test_the_output_follows_the_engine(tmp_path: Path) -> None:
    modern = engine._command(tmp_path, "r/m:1", tmp_path / "i.tar", BUILDX, Options())
    assert modern[-2] == f"--output=type=oci,dest={tmp_path}/i.tar,name=docker.io/r/m:1,rewrite-timestamp=true"
    assert modern[3:6] == ["docker", "buildx", "build"]
    classic = engine._command(tmp_path, "r/m:1", tmp_path / "i.tar", CLASSIC, Options())
    assert classic[3:5] == ["docker", "build"]
    assert "DOCKER_BUILDKIT=1" in classic
    assert classic[-2] == "--tag=r/m:1"
    registry = engine._command(tmp_path, "registry.example.com/m:1", tmp_path / "i.tar", BUILDX, Options())
    assert "name=registry.example.com/m:1" in registry[-2]


LOG = """\
#0 building with "default" instance using docker driver
#5 [base 1/2] FROM docker.io/library/debian:bookworm-slim
#5 CACHED
#6 [base 2/2] RUN sh /steps/apt python3
#6 0.512 Get:1 http://deb.example.com
#6 DONE 8.2s
#9 [wheels 3/3] RUN sh /steps/wheels index /requirements/engine.txt
#9 1.204 ERROR: Could not find a version that satisfies the requirement torch==9
#9 ERROR: process "/bin/sh -c ..." did not complete successfully: exit code: 1
------
 > [wheels 3/3] RUN sh ...:
------
ERROR: failed to solve: process did not complete successfully
"""


def test_the_log_becomes_steps_and_a_failure_with_its_own_lines() -> None:
    recorder = Recorder()
    log = Log(recorder)
    for line in LOG.splitlines():
        log.feed(line)
    log.close()
    assert recorder.titles == ["image: base 1/2", "image: base 2/2", "image: wheels 3/3"]
    assert recorder.ends == [("image: base 1/2", "cached"), ("image: base 2/2", ""), ("image: wheels 3/3", "failed")]
    assert "Get:1 http://deb.example.com" in recorder.notes
    error = log.failure(1, ["docker"])
    assert error.message.startswith("image build failed in step wheels 3/3: ")
    assert "torch==9" in error.message
    assert "Get:1" not in error.message
    assert "wheelhouse" in error.hint


def test_the_files_proxies_are_the_clients(tmp_path: Path) -> None:
    """Valueless build arguments take them from there."""
    options = Options(environ={"https_proxy": "http://proxy.example.com:3128", "no_proxy": ""})
    command = engine._command(tmp_path, "r/m:1", tmp_path / "i.tar", BUILDX, options)
    before = command[: command.index("docker")]
    assert before[0] == "env"
    assert {"https_proxy=http://proxy.example.com:3128", "no_proxy="} <= set(before)
    assert "--build-arg=https_proxy" in command


def test_a_failure_outside_any_step_shows_the_last_lines_and_the_command() -> None:
    log = Log(NoProgress())
    log.feed("ERROR: failed to solve: no space left on device")
    error = log.failure(1, ["docker", "buildx"])
    assert "no space left on device" in error.message
    assert "docker buildx" in error.message


def test_every_step_ends_even_when_the_log_stops() -> None:
    recorder = Recorder()
    log = Log(recorder)
    log.feed("#6 [base 2/2] RUN x")
    log.close()
    assert recorder.ends == [("image: base 2/2", "")]


def archive_with(path: Path, index: dict[str, object]) -> Path:
    with tarfile.open(path, "w") as tar:
        data = json.dumps(index).encode()
        info = tarfile.TarInfo("index.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return path


def test_an_archive_for_two_platforms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="2 manifests"):
        engine.from_archive(archive_with(tmp_path / "a.tar", {"manifests": [{"digest": "a"}, {"digest": "b"}]}), "r")


def test_an_archive_without_its_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="is missing from the archive"):
        engine.from_archive(archive_with(tmp_path / "a.tar", {"manifests": [{"digest": "sha256:aa"}]}), "r")
