"""What the machine passes to a build, and what it keeps to itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.config.load import Loaded, load
from builder.errors import ConfigError
from builder.image import machine

YAML = """
version: 1
name: m
model: {source: m.gguf}
weights: {store: store}
image:
  repository: r/m
  engine: {name: llama.cpp, version: "1.0"}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    (tmp_path / "builder.yaml").write_text(YAML)
    return load(tmp_path / "builder.yaml")


@pytest.fixture(autouse=True)
def _own_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip reads one empty file, apt's sources are not looked at, and no variable of whoever runs the tests counts."""
    for name in ("CERT", "INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "TRUSTED_HOST", "DEFAULT_TIMEOUT", "TIMEOUT", "PROXY"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(machine, "APT_SOURCES", ())


def with_image(loaded: Loaded, line: str) -> Loaded:
    loaded.path.write_text(YAML + line + "\n")
    return load(loaded.path)


def test_nothing_set_passes_nothing(loaded: Loaded, tmp_path: Path) -> None:
    given = machine.gather(loaded, tmp_path)
    assert (given.secrets, given.wheelhouse) == ({}, None)


def test_the_index_of_the_machine_passes_as_a_file_for_this_user_only(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example.com/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "file:///mirror/simple https://more.example.com/simple")
    path = machine.gather(loaded, tmp_path).secrets["pip_conf"]
    text = "[global]\nindex-url = https://index.example.com/simple\nextra-index-url = https://more.example.com/simple\n"
    assert path.read_text() == text  # a folder of this machine is not there inside the build
    assert path.stat().st_mode & 0o077 == 0


def test_the_certificate_of_the_file_wins_over_pips(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("own.pem", "pip.pem"):
        (tmp_path / name).write_text("-----BEGIN CERTIFICATE-----\n")
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "pip.pem"))
    assert machine.gather(loaded, tmp_path).secrets["ca"] == tmp_path / "pip.pem"
    assert machine.gather(with_image(loaded, "  ca_bundle: own.pem"), tmp_path).secrets["ca"] == tmp_path / "own.pem"


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_bundle_that_is_none(content: str | None, loaded: Loaded, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(ConfigError, match=r"image\.ca_bundle: .*ca\.pem holds no PEM certificate"):
        machine.gather(with_image(loaded, "  ca_bundle: ca.pem"), tmp_path)


def test_a_wheelhouse_counts_from_the_file(loaded: Loaded, tmp_path: Path) -> None:
    assert machine.wheelhouse(with_image(loaded, "  wheelhouse: wheels")) == tmp_path / "wheels"


def test_pips_only_local_folder_of_wheels_is_the_wheelhouse(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = tmp_path / "house"
    house.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(house))
    assert machine.wheelhouse(loaded) is None  # no wheels in it
    (house / "a-1-py3-none-any.whl").touch()
    assert machine.wheelhouse(loaded) == house
    monkeypatch.setenv("PIP_FIND_LINKS", "https://example.com/links")
    assert machine.wheelhouse(loaded) is None


@pytest.mark.parametrize(
    ("base", "text", "passes"),
    [
        ("debian:bookworm-slim", "Types: deb\nURIs: https://mirror.example.com/debian\nSuites: bookworm\n", True),
        ("debian:bookworm-slim", "deb https://mirror.example.com/debian bookworm main\n", True),
        ("debian:trixie-slim", "Types: deb\nURIs: https://mirror.example.com/debian\nSuites: bookworm\n", False),
        ("ubi9", "Types: deb\nURIs: https://mirror.example.com/debian\nSuites: bookworm\n", False),
    ],
)
def test_the_machines_debian_sources_pass_only_for_their_suite(
    base: str, text: str, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "debian.sources"
    sources.write_text(text)
    monkeypatch.setattr(machine, "APT_SOURCES", (sources,))
    assert machine.apt_sources(base) == (sources if passes else None)
