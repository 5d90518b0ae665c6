"""Real builds, seeded with leaks: each is found where Docker put it. The base image alone is clean."""

from __future__ import annotations

import json
import subprocess
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from builder.cli.image import command
from builder.errors import BudgetError, ClaimError
from tests.secrets import SECRETS

pytestmark = pytest.mark.docker
BASE = "debian:bookworm-slim"
HF, AWS, NPM = (SECRETS[kind][0].decode() for kind in ("Hugging Face token", "AWS access key", "npm token"))
DOCKERFILE = f"""
FROM {BASE}
ARG API_TOKEN
COPY files /app
RUN echo "$API_TOKEN" >/dev/null && rm /app/gone.txt
RUN mkdir "/app/{HF}" && touch "/app/{HF}/x"
ENV DB_PASSWORD=hunter22 INDEX=https://me:opensesame@index.example.com/simple
LABEL note={AWS}
ENTRYPOINT ["serve", "--key", "{NPM}"]
"""


@dataclass(frozen=True)
class Seeded:
    """tag: of this run alone. values: what must not be told."""

    tag: str
    values: tuple[str, ...]


@pytest.fixture(scope="module")
def seeded(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeded]:
    folder = tmp_path_factory.mktemp("seeded")
    app = folder / "files"
    app.mkdir()
    values = [HF, AWS, NPM, "hunter22", "opensesame", "argument-value"]
    for number, (_, rows) in enumerate(SECRETS.items()):
        (app / f"{number}.txt").write_bytes(b"\n".join(rows))
        values += [row.decode() for row in rows]
    (app / "gone.txt").write_text(HF)
    (app / "model.bin.part").write_bytes(b"GGUF\3\0\0\0" + bytes(2_000_000))
    with zipfile.ZipFile(app / "x-1-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("x/settings.py", f"TOKEN = '{HF}'")
    (folder / "Dockerfile").write_text(DOCKERFILE)
    tag = f"builder-test/scan-{uuid.uuid4().hex[:12]}:latest"
    build = [
        "docker",
        "build",
        "--network=none",
        "--quiet",
        f"--tag={tag}",
        "--build-arg=API_TOKEN=argument-value",
        str(folder),
    ]
    subprocess.run(["env", "DOCKER_BUILDKIT=1", *build], check=True, capture_output=True, timeout=300)
    yield Seeded(tag, tuple(values))
    subprocess.run(["docker", "rmi", "-f", tag], capture_output=True, check=False)


def scan(reference: str) -> tuple[Any, Any]:
    done = CliRunner().invoke(command, ["scan", reference, "--format", "json", "-q"])
    return json.loads(done.stdout), done.exception


def test_every_seeded_leak_is_found_where_it_is(seeded: Seeded) -> None:
    told, error = scan(seeded.tag)
    assert isinstance(error, ClaimError)
    rows = {(one["kind"], one["place"], one["path"]) for one in told["findings"]}
    for number, kind in enumerate(SECRETS):
        assert (kind, "layer", f"app/{number}.txt") in rows
    for want in [
        ("Hugging Face token", "layer", "app/gone.txt"),
        ("Hugging Face token", "layer", "app/x-1-py3-none-any.whl!x/settings.py"),
        ("Hugging Face token", "file name", "app/hf_a1..."),
        ("Hugging Face token", "history", ""),
        ("model weights", "layer", "app/model.bin.part"),
        ("variable named like a secret", "environment", ""),
        ("address with a password", "environment", ""),
        ("AWS access key", "label", ""),
        ("npm token", "entrypoint", ""),
        ("variable named like a secret", "history", ""),
    ]:
        assert want in rows, want
    copied = next(one for one in told["findings"] if one["path"] == "app/gone.txt")
    assert copied["made_by"].startswith("COPY files /app")


def test_no_value_is_told(seeded: Seeded) -> None:
    for form in ("human", "json"):
        done = CliRunner().invoke(command, ["scan", seeded.tag, "--format", form])
        assert isinstance(done.exception, ClaimError)
        for value in seeded.values:
            assert value not in done.output + done.exception.message


def test_the_base_image_alone_is_clean(docker_engine: str) -> None:
    told, error = scan(BASE)
    assert (told["findings"], told["unread"], error) == ([], [], None)
    assert told["files"] > 1000


def test_the_report_reads_what_the_engine_saves(seeded: Seeded, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(command, ["report", seeded.tag, "--against", BASE, "--html", str(page), "--format", "json", "-q"])
    told = json.loads(done.stdout)
    assert sum(one["packed"] for one in told["groups"]) == told["packed"]
    assert {"libc6", "coreutils", "perl-base"} <= {one["package"] for one in told["packages"] if one["manager"] == "debian"}
    assert {one["package"] for one in told["against"]["packages"]} >= {"/app"}
    assert "hidden by a later layer" in {one["name"] if "name" in one else one["cause"] for one in told["causes"]}
    for value in seeded.values:
        assert value not in page.read_text() + done.stdout


def test_the_budget_gates(docker_engine: str) -> None:
    done = CliRunner().invoke(command, ["report", BASE, "--budget", "1MB", "-q"])
    assert isinstance(done.exception, BudgetError)
    assert "libc6" in done.exception.message
