"""One image for two processors, built and run here where the kernel hands programs of the other one to qemu.

The base is a program of 39 bytes for each of them, written out below: no foreign distribution is needed.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import CapabilityError
from builder.image import admission, inspect, registry
from builder.image.backends.base import Options
from tests.conftest import missing
from tests.integration.docker.backends import Ground, ground
from tests.servers.registry import serve

pytestmark = pytest.mark.docker
BOTH = ("linux/amd64", "linux/arm64")
# write(1, text, 6); exit(0)
AMD64 = (62, bytes.fromhex("b801000000bf01000000488d3510000000ba060000000f05b83c00000031ff0f05"), b"amd64\n")
_WRITE, _EXIT = (0xD2800020, 0x100000E1, 0xD28000C2, 0xD2800808, 0xD4000001), (0xD2800000, 0xD2800BA8, 0xD4000001)
ARM64 = (183, struct.pack("<8I", *_WRITE, *_EXIT), b"arm64\n")


def program(machine: int, code: bytes, text: bytes) -> bytes:
    """A static ELF executable: one segment, loaded at 4 MiB."""
    at, body = 0x400000, code + text
    head = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, at + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    )
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, at, at, 120 + len(body), 120 + len(body), 0x1000) + body


@pytest.fixture
def site(docker_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    with ground("buildx", tmp_path, monkeypatch) as found:
        if not set(BOTH) <= set(found.backend.capabilities.platforms):
            missing("arm64", "this kernel runs no programs of the other processor (apt-get install qemu-user-static)")
        name = f"localhost/{found.name}-two:1"
        files = {"prog-amd64": program(*AMD64), "prog-arm64": program(*ARM64)}
        folder = found.context("FROM scratch\nARG TARGETARCH\nCOPY --chmod=755 prog-$TARGETARCH /prog\n", **files)
        command = [
            "docker",
            "buildx",
            "build",
            "--quiet",
            f"--platform={','.join(BOTH)}",
            f"--tag={name}",
            "--provenance=false",
        ]
        subprocess.run([*command, str(folder)], check=True, capture_output=True)
        yield Ground(found.backend, name, tmp_path, found.name)
        found.rid(name)


TEXT = 'FROM BASE\nRUN ["/prog"]\nENTRYPOINT ["/prog"]\n'


def test_an_image_for_both_runs_on_both(site: Ground, tmp_path: Path) -> None:
    archive = tmp_path / "two.tar"
    built = site.build(TEXT, archive, Options(platforms=BOTH))
    assert tuple(built.platforms) == BOTH
    assert len({built.digest, *built.platforms.values()}) == 3
    assert all(not inspect.scan_image(archive, "i", platform=platform).findings for platform in BOTH)
    admission.admit(site.backend, archive, built, layout=tmp_path / "layout")
    assert json.loads((tmp_path / "layout/index.json").read_text())["manifests"][0]["digest"] == built.digest
    for platform in BOTH:
        command = ["docker", "run", "--rm", "--network=none", f"--platform={platform}", built.reference]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == platform.split("/")[1]
    again = site.build(TEXT, tmp_path / "again.tar", Options(platforms=BOTH, no_cache=True))
    assert again.digest == built.digest


def test_a_leak_in_the_other_platforms_image_is_found(site: Ground, tmp_path: Path) -> None:
    files = {"amd64": b"nothing", "arm64": b"hf_" + b"a1B2" * 9}
    text = "FROM BASE\nARG TARGETARCH\nCOPY $TARGETARCH /settings\n"
    site.build(text, tmp_path / "leak.tar", Options(platforms=BOTH), **files)
    assert not inspect.scan_image(tmp_path / "leak.tar", "i", platform="linux/amd64").findings
    assert [one.kind for one in inspect.scan_image(tmp_path / "leak.tar", "i", platform="linux/arm64").findings] == [
        "Hugging Face token"
    ]


def test_both_are_pushed(site: Ground, tmp_path: Path) -> None:
    import dataclasses

    with serve(tmp_path / "registry") as place:
        built = dataclasses.replace(
            site.build(TEXT, tmp_path / "p.tar", Options(platforms=BOTH)), reference=place.reference("two", "v1")
        )
        admission.admit(site.backend, tmp_path / "p.tar", built)
        pushed = registry.push(site.backend, built)
        site.rid(built.reference)
        digest, index = place.manifest("two", "v1")
        assert pushed.pushed == digest == built.digest
        assert {entry["digest"] for entry in index["manifests"]} == set(built.platforms.values())


def test_buildah_builds_for_the_other_one_alone(docker_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ground("buildah", tmp_path, monkeypatch) as found, pytest.raises(CapabilityError, match="one platform at a time"):
        found.build("FROM BASE\n", tmp_path / "a.tar", Options(platforms=BOTH))
