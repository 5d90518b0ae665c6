"""`builder build` of images that must not come to be: each ends with its own exit code, one error, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder import resources
from tests.bounds import BOUND_S
from tests.conftest import missing
from tests.servers.registry import serve

pytestmark = pytest.mark.docker
DEMO = resources.folder("images") / "demo-llama-cpp"
RUN = [sys.executable, "-c", "from builder.cli import main; main()", "build", "--format=json", "--progress=none"]


class Site:
    """A copy of the demo's folder, a name of its own, and a TMPDIR of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "image"
        self.folder.mkdir()
        for name in ("builder.yaml", "requirements.lock"):
            shutil.copy(DEMO / name, self.folder)
        self.tmp = folder / "tmp"
        self.tmp.mkdir()
        self.reference = f"builder-test/{uuid.uuid4().hex[:10]}:v1"
        self.env = dict(os.environ) | {"TMPDIR": str(self.tmp), "PYTHONPATH": os.pathsep.join(sys.path)}

    def command(self, *more: str) -> list[str]:
        return [*RUN, "-f", str(self.folder / "builder.yaml"), "--tag", self.reference, *more]

    def build(self, *more: str, **env: str) -> tuple[int, dict[str, object], str]:
        """Exit code, the one JSON object, and stderr."""
        done = subprocess.run(self.command(*more), env=self.env | env, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout), done.stderr

    def verify(self, text: str) -> None:
        path = self.folder / "verify"
        path.write_text(text)
        path.chmod(0o755)

    def change(self, before: str, after: str) -> None:
        path = self.folder / "builder.yaml"
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))

    def nothing_is_left(self) -> bool:
        names = subprocess.run(["docker", "images", "-q", self.reference], capture_output=True, text=True, check=True).stdout
        return names == "" and list(self.tmp.iterdir()) == []


@pytest.fixture
def site(docker_engine: str, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    subprocess.run(["docker", "rmi", "-f", made.reference], capture_output=True, check=False)


def error(told: dict[str, object]) -> dict[str, str]:
    found = told["error"]
    assert isinstance(found, dict)
    return found


def test_an_image_that_disproves_itself_exits_7_and_is_not_pushed(site: Site, tmp_path: Path) -> None:
    if shutil.which("docker-registry") is None:
        missing("registry", "no docker-registry (apt-get install docker-registry)")
    site.verify("#!/bin/sh\necho the claim does not hold\nexit 5\n")
    with serve(tmp_path / "registry") as place:
        site.reference = place.reference("llm/tiny", "v1")
        code, told, _ = site.build("--push", "--oci", str(tmp_path / "oci"))
        assert code == 7
        assert "status 5" in error(told)["message"]
        assert "the claim does not hold" in error(told)["message"]
        assert place.tags("llm/tiny") == []
        assert site.nothing_is_left()
        assert not list((tmp_path / "oci").iterdir())
        assert not (site.folder / "builder.lock").exists()

        shutil.copy(DEMO / "verify", site.folder / "verify")
        code, told, _ = site.build("--push")
        assert (code, told["pushed"]) == (0, told["digest"])
        assert place.manifest("llm/tiny", "v1")[0] == told["digest"]
        locked = json.loads((site.folder / "builder.lock").read_text())["image"]
        assert locked["pushed"] == locked["digest"] == told["digest"]
        assert told["reproducible"] is True
        assert told["backend"]["name"] == "buildx"  # type: ignore[index]


def test_a_verify_that_cannot_run_is_refused_before_the_build(site: Site) -> None:
    site.verify("#!/bin/sh\n")
    (site.folder / "verify").chmod(0o644)
    code, told, _ = site.build()
    assert code == 2
    assert "is not executable" in error(told)["message"]


def test_a_base_without_a_part_of_python_fails_in_smoke_and_names_it(site: Site, tmp_path: Path) -> None:
    """Debian says that python3 is installed, and a module of it is gone: a base somebody made smaller by hand."""
    base = f"builder-test/{uuid.uuid4().hex[:10]}-bookworm:1"
    context = tmp_path / "base"
    context.mkdir()
    (context / "Dockerfile").write_text(
        "FROM debian:bookworm-slim\n"
        "COPY apt /apt\n"
        "RUN --mount=type=secret,id=apt_sources --mount=type=secret,id=ca \\\n"
        " sh /apt ca-certificates python3 libpython3-stdlib \\\n"
        " && rm -r /usr/lib/python3.11/http/server.py /apt\n"
    )
    shutil.copy(resources.folder("templates") / "image/steps/apt", context / "apt")
    secrets = ["--secret=id=ca,src=/etc/ssl/certs/ca-certificates.crt"]
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    if sources.is_file():
        secrets.append(f"--secret=id=apt_sources,src={sources}")
    subprocess.run(["docker", "build", "-q", *secrets, "-t", base, str(context)], check=True, capture_output=True)
    try:
        site.change('  python: "3.11"', f'  base: {base}\n  python: "3.11"')
        code, told, _ = site.build()
        assert code == 1
        assert "smoke" in error(told)["message"].splitlines()[0]
        assert "no module http.server" in error(told)["hint"]
        assert site.nothing_is_left()
    finally:
        subprocess.run(["docker", "rmi", "-f", base], capture_output=True, check=False)


def test_a_wheel_with_other_bytes_than_the_lock_exits_3(site: Site) -> None:
    lock = site.folder / "requirements.lock"
    text = lock.read_text()
    digest = text.rpartition("--hash=sha256:")[2][:64]
    lock.write_text(text.replace(digest, "0" * 64))
    code, told, _ = site.build()
    assert code == 3
    assert "0" * 64 in error(told)["message"]
    assert site.nothing_is_left()


def test_a_missing_secret_is_refused_before_the_build(site: Site) -> None:
    site.change('  python: "3.11"', '  ca_bundle: none.pem\n  python: "3.11"')
    code, told, _ = site.build()
    assert code == 2
    assert "image.ca_bundle" in error(told)["message"]


def test_an_interrupt_leaves_nothing(site: Site) -> None:
    child = subprocess.Popen(site.command("--no-cache"), env=site.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + BOUND_S
    while not list(site.tmp.glob("*/context/Dockerfile")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)  # well inside the build
    child.send_signal(signal.SIGINT)
    assert child.wait(BOUND_S) == 130
    assert site.nothing_is_left()


def test_a_registry_that_wants_a_login_exits_5_and_the_image_stays(site: Site, tmp_path: Path) -> None:
    if shutil.which("docker-registry") is None:
        missing("registry", "no docker-registry (apt-get install docker-registry)")
    with serve(tmp_path / "registry", users={"ci": "right-4711"}) as place:
        site.reference = place.reference("llm/tiny", "v1")
        (tmp_path / "docker").mkdir()
        code, told, said = site.build("--push", DOCKER_CONFIG=str(tmp_path / "docker"))
        assert code == 5
        assert "refuses the login" in error(told)["message"]
        assert "4711" not in json.dumps(told) + said
        assert place.tags("llm/tiny") == []


def test_a_layout_folder_with_something_in_it_is_refused_before_the_build(site: Site, tmp_path: Path) -> None:
    (tmp_path / "oci").mkdir()
    (tmp_path / "oci" / "mine").touch()
    code, told, _ = site.build("--oci", str(tmp_path / "oci"))
    assert code == 2
    assert "not empty" in error(told)["message"]
