"""A build whose only network is a local index and mirror, over TLS with a private authority and a password.

A second Docker engine and the index live in a network namespace that has a loopback device and nothing else. The failing
builds come first: BuildKit does not look into secrets, so after a good build the same step would come from its cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from builder import resources
from builder.config.load import Loaded, load
from builder.errors import BuilderError, ConfigError, IntegrityError, RemoteError
from builder.image import inspect, machine
from builder.pipeline import build_image
from tests.bounds import BOUND_S
from tests.conftest import missing
from tests.servers.index import Certificates, Index, Login, Proxy, certify, within

pytestmark = [pytest.mark.docker, pytest.mark.root]
DEMO = resources.folder("images") / "demo-llama-cpp"
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
# The base has all that the steps ask apt for, but libgomp1: that comes from the closed mirror.
BASE = """\
FROM debian:bookworm-slim AS base
RUN --mount=type=secret,id=apt_sources --mount=type=secret,id=ca \\
    install -m 444 /run/secrets/ca /tmp/ca && cp /run/secrets/apt_sources /etc/apt/sources.list.d/build.sources \\
 && set -- -qq -o Acquire::https::CaInfo=/tmp/ca -o APT::Sandbox::User=root && apt-get "$@" update \\
 && apt-get "$@" install -y --no-install-recommends ca-certificates libnuma1 libpython3-stdlib python3 python3-venv \\
    binutils \\
 && mkdir /debs && cd /debs && apt-get "$@" download libgomp1 \\
 && rm -rf /tmp/ca /etc/apt/sources.list.d/build.sources /var/lib/apt/lists/*
FROM scratch AS debs
COPY --from=base /debs /
"""


@dataclass(frozen=True)
class Closed:
    """engine: the second engine's address. base: an image it holds. login.password has what URLs and shells trip over."""

    namespace: Path
    engine: str
    base: str
    wheels: Path
    debs: Path
    certificates: Certificates
    login: Login

    def index(self, **faults: str) -> Index:
        named = {name.replace("_", " "): fault for name, fault in faults.items()}
        return Index(self.wheels, self.certificates, self.login, self.debs, self.namespace, named)


@pytest.fixture(scope="module")
def closed(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    if os.geteuid() != 0:
        missing("root", "a network namespace needs root")
    folder, run = tmp_path_factory.mktemp("closed"), uuid.uuid4().hex[:12]
    login = Login("robot", f'p@ss/w"\\:%{run}')
    (folder / "tls").mkdir()
    certificates = certify(folder / "tls", f"Closed Network Root {run}")
    base = f"builder-test/closed-base-{run}:latest"
    debs, saved = prepare(folder, base)
    wheels = folder / "wheels"
    fetch = ["pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-d", str(wheels)]
    subprocess.run([sys.executable, "-m", *fetch, "-r", str(DEMO / "requirements.lock")], check=True, capture_output=True)
    with namespace() as net, dockerd(folder / "engine", net) as engine:
        subprocess.run(["docker", "-H", engine, "load", "-q", "-i", saved], check=True, capture_output=True)
        saved.unlink()
        yield Closed(net, engine, base, wheels, debs, certificates, login)


def prepare(folder: Path, base: str) -> tuple[Path, Path]:
    """Made with the engine that has a network: Debian packages, and the base image as an archive."""
    context, debs, saved = folder / "context", folder / "debs", folder / "base.tar"
    context.mkdir()
    (context / "Dockerfile").write_text(BASE)
    given = machine.gather(load(DEMO), folder)
    secrets = [f"--secret=id={name},src={given.secrets[name]}" for name in ("ca", "apt_sources") if name in given.secrets]
    build = ["docker", "buildx", "build", "-q", *secrets]
    for target, output in (
        ("debs", f"type=local,dest={debs}"),
        ("base", f"type=oci,dest={saved},name=docker.io/{base},compression=uncompressed"),
    ):
        subprocess.run([*build, f"--target={target}", f"--output={output}", context], check=True, capture_output=True)
    return debs, saved


@contextlib.contextmanager
def namespace() -> Iterator[Path]:
    """A network namespace with a loopback device that is up, and nothing else."""
    with subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) as holder:
        try:
            path, own = Path(f"/proc/{holder.pid}/ns/net"), Path("/proc/self/ns/net").readlink()
            wait(lambda: path.readlink() != own, "a namespace")
            within(path, loopback)
            yield path
        finally:
            holder.kill()


def loopback() -> None:
    with socket.socket() as probe:
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


@contextlib.contextmanager
def dockerd(folder: Path, net: Path) -> Iterator[str]:
    """An engine of its own, containerd image store and all, inside the namespace."""
    folder.mkdir()
    (folder / "daemon.json").write_text(json.dumps({"features": {"containerd-snapshotter": True}}))
    address = f"unix://{folder}/sock"
    command = ["nsenter", f"--net={net}", "dockerd", f"--config-file={folder}/daemon.json", f"--data-root={folder}/data"]
    command += [f"--exec-root={folder}/run", f"--pidfile={folder}/pid", f"--host={address}", "--bridge=none"]
    command += ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--log-level=warn"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as daemon:
        try:
            answers = ["docker", "-H", address, "version"]
            wait(
                lambda: subprocess.run(answers, capture_output=True, check=False).returncode == 0, f"dockerd, see {folder}/log"
            )
            yield address
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(timeout=BOUND_S)


def wait(holds: object, what: str) -> None:
    assert callable(holds)
    end = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < end, f"no {what} within {BOUND_S:.0f} s"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _inside(closed: Closed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds go to the second engine; nothing of this machine's own pip and proxies helps; a refusal is not asked again."""
    for name in [n for n in os.environ if n.startswith("PIP_") or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("DOCKER_HOST", closed.engine)
    monkeypatch.setenv("INDEX_PASSWORD", closed.login.password)


def describe(
    closed: Closed, folder: Path, root: str, *, index: str = "", ca: Path | None = None, network: str = "host"
) -> Loaded:
    """The demo image, with everything from `root`. index: other than the usual one."""
    usual = f"{{url: '{root}/simple', username: {closed.login.user}, password: {{env: INDEX_PASSWORD}}}}"
    (folder / "debian.list").write_text(f"deb [trusted=yes] {root}/apt ./\n")
    password = closed.login.password
    (folder / "auth.conf").write_text(f"machine {root}/apt login {closed.login.user} password {password}\n")
    lines = [
        f"  base: {closed.base}",
        f"  ca_bundle: {ca or closed.certificates.ca}",
        f"  build_network: {network}",
        f"  index: {index or usual}",
        "  apt: {sources: debian.list, auth: auth.conf}",
    ]
    text = (DEMO / "builder.yaml").read_text().replace('  python: "3.11"\n', '  python: "3.11"\n' + "\n".join(lines) + "\n")
    (folder / "builder.yaml").write_text(text)
    shutil.copy(DEMO / "requirements.lock", folder)
    return load(folder / "builder.yaml")


def test_nothing_but_the_index_can_be_reached(closed: Closed) -> None:
    def outside() -> None:
        for address in ("192.0.2.1", "9.9.9.9", "10.0.0.1", "169.254.169.254"):
            with pytest.raises(OSError, match="Network is unreachable"):
                socket.create_connection((address, 443), timeout=1)
        devices = [line.split(":")[0].strip() for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]]
        assert devices == ["lo"]

    within(closed.namespace, outside)


def docker(*args: str) -> str:
    return subprocess.run(["docker", *args], capture_output=True, text=True, check=True).stdout


def refused(loaded: Loaded, kind: type[BuilderError]) -> BuilderError:
    with pytest.raises(BuilderError) as caught:
        build_image(loaded, tag="registry.example.com/closed/refused:1", environ=os.environ)
    assert type(caught.value) is kind
    assert "\n" not in caught.value.message
    assert docker("images", "-q", "registry.example.com/closed/refused") == ""
    return caught.value


def test_apt_does_not_trust_an_unknown_authority(closed: Closed, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with closed.index() as index:
        error = refused(describe(closed, tmp_path, index.root, ca=certify(tmp_path / "other", "Other").ca), RemoteError)
    assert "certificate issuer is unknown" in error.message
    assert "image.ca_bundle" in error.hint
    assert index.requests == []


def test_apt_names_the_file_of_a_login_that_is_refused(closed: Closed, tmp_path: Path) -> None:
    with closed.index() as index:
        loaded = describe(closed, tmp_path, index.root)
        (tmp_path / "auth.conf").write_text(f"machine {index.root}/apt login robot password other\n")
        error = refused(loaded, RemoteError)
    assert "401" in error.message
    assert "image.apt.auth" in error.hint
    assert {one.status for one in index.requests} == {401}


def test_a_missing_variable_is_named_before_anything_is_built(
    closed: Closed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INDEX_PASSWORD")
    with closed.index() as index:
        error = refused(describe(closed, tmp_path, index.root), ConfigError)
    assert "image.index.password names INDEX_PASSWORD, which is not set" in error.message
    assert index.requests == []


def test_a_wrong_password_says_401_and_which_key_to_set(
    closed: Closed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INDEX_PASSWORD", "other")
    with closed.index() as index:
        error = refused(describe(closed, tmp_path, index.root), RemoteError)
    assert "401" in error.message
    assert "image.index.password" in error.hint
    assert "/simple/awscrt/" in index.paths(401)


def test_pip_does_not_trust_an_unknown_authority(closed: Closed, tmp_path: Path) -> None:
    """What apt does comes from BuildKit's cache by now."""
    (tmp_path / "other").mkdir()
    with closed.index() as index:
        error = refused(describe(closed, tmp_path, index.root, ca=certify(tmp_path / "other", "Other").ca), RemoteError)
    assert "unable to get local issuer certificate" in error.message
    assert "image.ca_bundle" in error.hint


@pytest.mark.parametrize(
    ("faults", "kind", "says"),
    [
        ({"awscrt": "wrong"}, IntegrityError, "awscrt==0.38.1"),
        ({"awscrt": "short"}, IntegrityError, "awscrt==0.38.1"),
        ({"page_awscrt": "error"}, RemoteError, "500"),
        ({"page_awscrt": "forbidden"}, RemoteError, "403"),
    ],
)
def test_an_index_with_a_fault(
    closed: Closed, tmp_path: Path, faults: dict[str, str], kind: type[BuilderError], says: str
) -> None:
    with closed.index(**faults) as index:
        assert says in refused(describe(closed, tmp_path, index.root), kind).message


def test_an_index_that_does_not_answer(closed: Closed, tmp_path: Path) -> None:
    with closed.index() as index:
        loaded = describe(closed, tmp_path, index.root, index="{url: 'https://127.0.0.1:9/simple'}")
        error = refused(loaded, RemoteError)
    assert "127.0.0.1 cannot be reached: Connection refused" in error.message
    assert "image.wheelhouse" in error.hint


@dataclass(frozen=True)
class Proof:
    """A build by the command, and all that could be seen of it from outside.

    said: stdout and stderr at -vv. log: all that BuildKit printed, and its client's arguments. seen: the command lines of
    all processes, as they came and went.
    """

    secrets: tuple[str, ...]
    said: str
    log: str
    seen: frozenset[bytes]
    reference: str
    archive: Path
    index: Index
    proxy: Proxy


TEE = """\
#!/bin/bash
# The docker program, which keeps what a build prints and how it was called.
set -o pipefail
printf '%s\\n' "$*" >>LOG
case " $* " in *" build "*) DOCKER "$@" 2>&1 | tee -a LOG ;; *) exec DOCKER "$@" ;; esac
"""


@pytest.fixture(scope="module")
def proof(closed: Closed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    """Through a proxy that wants a password too, which only the environment knows."""
    folder, reference = tmp_path_factory.mktemp("proof"), "registry.example.com/closed/demo:1"
    gate = Login("gate", f"g@te:{uuid.uuid4().hex[:12]}")
    log, shim = folder / "log", folder / "bin" / "docker"
    shim.parent.mkdir()
    shim.write_text(TEE.replace("LOG", str(log)).replace("DOCKER", shutil.which("docker") or ""))
    shim.chmod(0o755)
    with closed.index() as index, Proxy(gate, closed.namespace) as proxy:
        loaded = describe(closed, folder, index.root)
        env = {k: v for k, v in os.environ.items() if not k.startswith("PIP_") and not k.lower().endswith("_proxy")}
        env |= {"INDEX_PASSWORD": closed.login.password, "DOCKER_HOST": closed.engine, "https_proxy": proxy.url}
        env |= {"PIP_CONFIG_FILE": "/dev/null", "PATH": f"{shim.parent}:{os.environ['PATH']}"}
        command = [sys.executable, "-c", "from builder.cli import main; main()", "build", "-f", str(loaded.path)]
        command += ["--tag", reference, "--progress", "plain", "-vv"]
        said, seen = watched(command, env)
    archive = folder / "image.tar"
    subprocess.run(["docker", "-H", closed.engine, "save", "-o", archive, reference], check=True, capture_output=True)
    yield Proof((*leaks(closed, gate),), said, log.read_text(), seen, reference, archive, index, proxy)
    archive.unlink()


def leaks(closed: Closed, gate: Login) -> list[str]:
    """What must be nowhere: both passwords, plain, in a URL, in netrc and in a header; the authority by name and by body."""
    found = [closed.certificates.name, closed.certificates.ca.read_text().splitlines()[1]]
    for login in (closed.login, gate):
        escaped = login.password.replace("\\", "\\\\").replace('"', '\\"')
        found += [login.password, quote(login.password, safe=""), quote(login.password), escaped, login.header.split()[1]]
    return list(dict.fromkeys(found))


def watched(command: list[str], env: dict[str, str]) -> tuple[str, frozenset[bytes]]:
    """What a program that must end well says, and every command line that the machine had meanwhile."""
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        seen: set[bytes] = set()
        watcher = threading.Thread(target=watch, args=(child, seen))
        watcher.start()
        said = child.communicate()[0].decode()
        watcher.join()
    assert child.returncode == 0, said
    return said, frozenset(seen)


def watch(child: subprocess.Popen[bytes], seen: set[bytes]) -> None:
    while child.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                seen.add(path.read_bytes())
        time.sleep(0.02)


def test_everything_came_from_the_index_with_a_login_and_through_the_proxy(closed: Closed, proof: Proof) -> None:
    files = {one.name for one in closed.wheels.glob("*.whl")}
    assert len(files) == 4
    assert {path.removeprefix("/files/") for path in proof.index.paths() if path.startswith("/files/")} == files
    assert {one.user for one in proof.index.requests if one.status == 200} == {closed.login.user}
    assert ("127.0.0.1", True) in proof.proxy.hosts


def test_no_password_and_no_authority_is_in_the_image(proof: Proof) -> None:
    assert inspect.scan(proof.archive, also=[one.encode() for one in proof.secrets]) == []
    shown = docker("history", "--no-trunc", proof.reference) + docker("image", "inspect", proof.reference)
    assert "10001:0" in shown
    assert [one for one in proof.secrets if one in shown] == []


def test_no_password_and_no_authority_is_in_a_log_or_a_process_list(proof: Proof) -> None:
    assert proof.reference in proof.said
    assert "Successfully installed" in proof.log
    assert any(b"--secret=id=netrc" in line for line in proof.seen)
    assert any(b"/opt/pip/bin/pip" in line for line in proof.seen)
    assert [one for one in proof.secrets if one in proof.said + proof.log] == []
    assert [one for one in proof.secrets for line in proof.seen if one.encode() in line] == []


def test_the_mirrors_package_is_installed(closed: Closed, proof: Proof) -> None:
    """Its step may come from the cache of an earlier test; the base has no such library, and there is no other mirror."""
    look = ("run", "--rm", "--network=none", "--entrypoint=ls")
    assert "libgomp.so.1" not in docker(*look, closed.base, "/usr/lib/x86_64-linux-gnu")
    assert "libgomp.so.1" in docker(*look, proof.reference, "/usr/lib/x86_64-linux-gnu")


def test_a_full_wheelhouse_needs_no_network_at_all(closed: Closed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that lacks a wheel says which."""
    monkeypatch.delenv("INDEX_PASSWORD")
    full = closed.base.replace("closed-base", "closed-full")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "Dockerfile").write_text(f"FROM {closed.base}\nRUN --network=none dpkg -i /debs/*.deb\n")
    docker("build", "-q", "-t", full, str(tmp_path / "full"))
    loaded = describe(closed, tmp_path, "https://192.0.2.1", index="false", network="none")
    text = loaded.path.read_text().replace(closed.base, full).replace("  index:", "  wheelhouse: wheels\n  index:")
    loaded.path.write_text(text)
    shutil.copytree(closed.wheels, tmp_path / "wheels")
    build_image(load(loaded.path), tag="registry.example.com/closed/offline:1")
    next((tmp_path / "wheels").glob("xllamacpp-*")).unlink()
    error = refused(load(loaded.path), ConfigError)
    assert "wheels lacks xllamacpp==" in error.message
    assert "pip download" in error.hint
