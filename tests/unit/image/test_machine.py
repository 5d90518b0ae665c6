"""What the machine passes to a build, and what it keeps to itself."""

from __future__ import annotations

import netrc
import os
import re
from pathlib import Path

import pytest

from builder import pipeline
from builder.config.load import Loaded, load
from builder.errors import ConfigError
from builder.image import machine, resolve
from builder.image.lock import Lock, LockLayer, Wheel
from builder.image.lock import text as text_of
from builder.image.locked import asks
from tests.servers.index import Index, Login, certify
from tests.wheels import wheel

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
    for name in (
        "CERT",
        "INDEX_URL",
        "EXTRA_INDEX_URL",
        "FIND_LINKS",
        "TRUSTED_HOST",
        "DEFAULT_TIMEOUT",
        "TIMEOUT",
        "PROXY",
        "RETRIES",
    ):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(machine, "APT_SOURCES", ())
    monkeypatch.setattr(machine, "APT_AUTH", ())


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


INDEX = "  index: {url: 'https://Packages.example.com:8443/simple'"
LOGIN = INDEX + ", username: robot, password: {env: INDEX_PASSWORD}}"


def test_the_files_index_replaces_the_machines(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trusted-host too: it would let any certificate pass for the index of the file."""
    monkeypatch.setenv("PIP_INDEX_URL", "https://u:p@index.example.com/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "packages.example.com")
    monkeypatch.setenv("PIP_RETRIES", "1")
    given = machine.gather(with_image(loaded, INDEX + ", extra: ['https://more.example.com/simple']}"), tmp_path)
    assert given.secrets["pip_conf"].read_text() == (
        "[global]\nindex-url = https://Packages.example.com:8443/simple\n"
        "extra-index-url = https://more.example.com/simple\nretries = 1\n"
    )
    assert "netrc" not in given.secrets


PASSWORDS = ("plain", 'q"uo\\te', "#hash", "p@ss/w:%20", "it's", "\\", '"')


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_login_becomes_a_netrc_that_python_reads_back(password: str, loaded: Loaded, tmp_path: Path) -> None:
    """Under the name that requests asks for: the host without its port, as it stands in the URL."""
    given = machine.gather(with_image(loaded, LOGIN), tmp_path, {"INDEX_PASSWORD": password})
    path = given.secrets["netrc"]
    assert path.stat().st_mode & 0o077 == 0
    read = netrc.netrc(str(path))
    assert set(read.hosts) == {"Packages.example.com", "packages.example.com"}
    for host in read.hosts:
        assert read.authenticators(host) == ("robot", "", password)
    assert password not in given.secrets["pip_conf"].read_text()


def test_python_3_10_reads_netrc_without_quotes(loaded: Loaded, tmp_path: Path) -> None:
    """Its netrc module takes a quote for a letter of the password (3.11 rewrote it, bpo-28806)."""
    given = machine.gather(with_image(loaded, LOGIN + '\n  python: "3.10"'), tmp_path, {"INDEX_PASSWORD": 'a"b'})
    assert given.secrets["netrc"].read_text().splitlines()[0] == 'machine Packages.example.com login robot password a"b'


@pytest.mark.parametrize("environ", [{}, {"INDEX_PASSWORD": ""}])
def test_a_password_that_is_not_set(environ: dict[str, str], loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"image\.index\.password names INDEX_PASSWORD, which is not set") as caught:
        machine.gather(with_image(loaded, LOGIN), tmp_path, environ)
    assert caught.value.hint == "export INDEX_PASSWORD=..."


def test_a_user_name_may_be_in_a_variable_too(loaded: Loaded, tmp_path: Path) -> None:
    line = LOGIN.replace("robot", "{env: INDEX_USER}")
    with pytest.raises(ConfigError, match=r"image\.index\.username names INDEX_USER"):
        machine.gather(with_image(loaded, line), tmp_path, {"INDEX_PASSWORD": "p"})
    given = machine.gather(with_image(loaded, line), tmp_path, {"INDEX_PASSWORD": "p", "INDEX_USER": "me"})
    assert 'login "me"' in given.secrets["netrc"].read_text()


@pytest.mark.parametrize("password", ["two words", "pässword", "line\n"])
def test_a_password_that_netrc_cannot_hold_is_refused_unseen(password: str, loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="INDEX_PASSWORD holds a blank or a letter that is not ASCII") as caught:
        machine.gather(with_image(loaded, LOGIN), tmp_path, {"INDEX_PASSWORD": password})
    assert password not in caught.value.message + caught.value.hint


def test_no_index_needs_no_password(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example.com/simple")
    assert machine.gather(with_image(loaded, "  index: false"), tmp_path, {}).secrets == {}


def test_this_users_netrc_counts_for_the_hosts_of_the_index_alone(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.write_text("machine index.example.com login me password mine\nmachine other.example.com login me password other\n")
    own.chmod(0o600)
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example.com/simple")
    given = machine.gather(loaded, tmp_path, {"NETRC": str(own)})
    assert given.secrets["netrc"].read_text() == 'machine index.example.com login "me" password "mine"\n'
    own.write_text("machine\nnonsense")
    assert "netrc" not in machine.gather(loaded, tmp_path, {"NETRC": str(own)}).secrets


def test_the_files_debian_sources_and_their_login(loaded: Loaded, tmp_path: Path) -> None:
    for name in ("closed.sources", "auth.conf"):
        (tmp_path / name).write_text("x\n")
    given = machine.gather(with_image(loaded, "  apt: {sources: closed.sources, auth: auth.conf}"), tmp_path)
    assert given.secrets == {"apt_sources": tmp_path / "closed.sources", "apt_auth": tmp_path / "auth.conf"}
    (tmp_path / "auth.conf").unlink()
    with pytest.raises(ConfigError, match=r"image\.apt\.auth: .*auth\.conf: no such file"):
        machine.gather(with_image(loaded, "  apt: {sources: closed.sources, auth: auth.conf}"), tmp_path)


def test_the_machines_apt_logins_pass_with_its_sources_for_their_hosts(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, folder = tmp_path / "debian.sources", tmp_path / "auth.conf.d"
    folder.mkdir()
    sources.write_text("Types: deb\nURIs: https://mirror.example.com/debian\nSuites: bookworm\n")
    (folder / "a.conf").write_text("machine mirror.example.com login me password mine\n")
    (folder / "b.conf").write_text("machine other.example.com login me password other\n")
    monkeypatch.setattr(machine, "APT_SOURCES", (sources,))
    monkeypatch.setattr(machine, "APT_AUTH", (tmp_path / "auth.conf", folder))
    path = machine.gather(loaded, tmp_path).secrets["apt_auth"]
    assert path.read_text() == "machine mirror.example.com login me password mine\n"
    assert path.stat().st_mode & 0o077 == 0


def test_the_files_proxies_keep_the_environments_out(loaded: Loaded, tmp_path: Path) -> None:
    assert machine.gather(loaded, tmp_path).environ == {}
    given = machine.gather(
        with_image(loaded, "  proxy: {https: 'http://proxy.example.com:3128', no_proxy: .example.com}"), tmp_path
    )
    assert given.environ == {
        **dict.fromkeys(("http_proxy", "HTTP_PROXY"), ""),
        **dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://proxy.example.com:3128"),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), ".example.com"),
    }


def test_a_lock_asks_the_files_index(tmp_path: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its authority and login, whatever pip and the resolver are set to here; sizes too, by the same login."""
    for name in ("tls", "wheels", "private"):
        (tmp_path / name).mkdir()
    wheels = [wheel(tmp_path / "wheels", name.partition("==")[0], name.partition("==")[2]) for name in asks(loaded.spec)]
    monkeypatch.setenv("PIP_INDEX_URL", "https://192.0.2.1/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://192.0.2.1/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")
    login = Login("robot", 'p@ss"w\\d')
    with Index(tmp_path / "wheels", certify(tmp_path / "tls", "Root"), login) as index:
        lines = f"  ca_bundle: {tmp_path}/tls/ca.pem\n" + LOGIN.replace("https://Packages.example.com:8443/simple", index.url)
        described = with_image(loaded, lines)
        environ = {**os.environ, "INDEX_PASSWORD": login.password, "UV_NO_CACHE": "1"}
        given = machine.gather(described, tmp_path / "private", environ)
        places = machine.places(described, given, environ)
        lock = resolve.resolve(described.spec, places)
    assert {wheel.name: wheel.size for wheel in lock.wheels} == {
        path.name.split("-")[0].replace("_", "-"): path.stat().st_size for path in wheels
    }
    assert login.password not in str(places.environ)


def test_the_passwords_that_a_build_is_given_are_known_to_its_scan(loaded: Loaded, tmp_path: Path) -> None:
    for name, text in {
        "netrc": 'machine a login robot password "p@ ss\\"w"\nmachine b login u password plain-word\n',
        "apt_auth": "machine mirror.example.com login u password apt-secret\nmachine x login y password tiny\n",
        "pip_conf": "[global]\nindex-url = https://u:pip%2Fsecret@host/simple\n",
        "ca": "password not-a-password\n",
    }.items():
        (tmp_path / name).write_text(text)
    given = machine.Given({name: tmp_path / name for name in ("netrc", "apt_auth", "pip_conf", "ca")}, None)
    assert set(given.told()) == {b'p@ ss"w', b"plain-word", b"apt-secret", b"pip/secret"}
    assert machine.Given({}, None).told() == ()


def test_a_rendered_dockerfile_names_no_index_and_no_login(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INDEX_PASSWORD", "p4ssw0rd")
    wheels = LockLayer("engine", (Wheel("w", "1", ("0" * 64,)),))
    lock = Lock("m", "3.11", ("linux/amd64",), asks(loaded.spec), (wheels,))
    (loaded.folder / "requirements.lock").write_text(text_of(lock))
    text = pipeline.render_image(with_image(loaded, LOGIN + "\n  proxy: {http: 'http://proxy.example.com:3128'}"), "")
    assert not re.search("p4ssw0rd|robot|INDEX_PASSWORD|packages.example.com|proxy.example.com", text, re.IGNORECASE)
