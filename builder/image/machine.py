"""What this machine and builder.yaml tell a build, without it ending up in an image: authorities, indexes, logins, proxies.

Each becomes a file that only this user can read, and with it a BuildKit secret, or a variable of the build's client:

    ca           image.ca_bundle, else pip's `cert`                    certificate authorities, PEM
    pip_conf     image.index.url and extra, else pip's own settings    a pip configuration file
    netrc        image.index.username and password, else this user's netrc for the same hosts
    apt_sources  image.apt.sources, else the machine's for the same Debian release
    apt_auth     image.apt.auth, else the machine's for the hosts of its sources
    http_proxy…  image.proxy, else the client's own environment        BuildKit's predefined arguments

Logins go into netrc and not into the URL: pip masks a password in what it prints, but not the user name, and hands the
URL to the processes it starts. pip's requests reads the file that $NETRC names, with one login per host.
"""

from __future__ import annotations

import ast
import netrc
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from builder import process
from builder.config.load import Loaded
from builder.config.spec import Image, Index, TokenRef
from builder.errors import ConfigError
from builder.image.resolve import Places

WITH_PASSWORDS = ("netrc", "apt_auth", "pip_conf")
SHORTEST = 6
"""Letters of a password that is searched for; a shorter one is in every image by chance."""
PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
APT_SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
APT_AUTH = (Path("/etc/apt/auth.conf"), Path("/etc/apt/auth.conf.d"))


@dataclass(frozen=True, slots=True)
class Given:
    """secrets: id to file, for BuildKit. wheelhouse: a folder of wheels, or None.

    environ: variables of the build's client, without secrets.
    """

    secrets: dict[str, Path]
    wheelhouse: Path | None
    environ: dict[str, str] = field(default_factory=dict)

    def told(self) -> tuple[bytes, ...]:
        """The passwords in the secrets, as they are: of netrc and apt's auth.conf, and of addresses in pip's settings."""
        text = "\n".join(path.read_text(errors="replace") for name, path in self.secrets.items() if name in WITH_PASSWORDS)
        found = re.findall(r"\bpassword\s+(?:\"((?:[^\"\\]|\\.)*)\"|(\S+))", text)
        words = [re.sub(r"\\(.)", r"\1", quoted) or plain for quoted, plain in found]
        words += [unquote(one) for one in re.findall(r"://[^/:@\s]*:([^@/\s]+)@", text)]
        return tuple(sorted({word.encode() for word in words if len(word) >= SHORTEST}))


def gather(loaded: Loaded, private: Path, environ: Mapping[str, str] | None = None) -> Given:
    """What builder.yaml names, else what this machine's own pip and apt use. private: a folder only this user can read.

    environ: the variables that image.index may name. Raises ConfigError if builder.yaml names a file or a variable
    that is not there, or a login that netrc cannot hold.
    """
    image, pip = loaded.spec.image, pip_settings()
    secrets = _authorities(loaded, pip) | _index(image, pip, private, environ or {}) | _apt(loaded, private)
    return Given(secrets, wheelhouse(loaded, pip), proxies(image))


def places(loaded: Loaded, given: Given, environ: Mapping[str, str]) -> Places:
    """Where `builder lock` looks: what the build will ask. given: as `gather` gave it. environ: this process's variables.

    Settings of the resolver's own are left out: a lock follows builder.yaml, and this machine's pip where that is silent.
    """
    image, pip = loaded.spec.image, pip_settings()
    found = {key: value for key, value in environ.items() if not key.startswith(("UV_", "PIP_"))} | given.environ
    settings = _index_settings(image, pip)
    told = {
        "UV_DEFAULT_INDEX": settings.get("index-url", ""),
        "UV_INDEX": settings.get("extra-index-url", ""),
        "UV_INSECURE_HOST": settings.get("trusted-host", ""),
        "NETRC": str(given.secrets.get("netrc", "")),
        "SSL_CERT_FILE": str(given.secrets.get("ca", "")),
    }
    return Places(found | {key: value for key, value in told.items() if value}, given.wheelhouse, bool(image.index))


def wheelhouse(loaded: Loaded, pip: dict[str, str] | None = None) -> Path | None:
    """image.wheelhouse, else the one local folder of wheels that pip's find-links names. pip: its settings, if known."""
    if loaded.spec.image.wheelhouse:
        return loaded.path_of(loaded.spec.image.wheelhouse)
    return _find_links((pip_settings() if pip is None else pip).get("find-links", ""))


def pip_settings() -> dict[str, str]:
    """pip's settings here, environment last, as `pip config list` tells them; empty where there is no pip."""
    done = process.run([sys.executable, "-m", "pip", "config", "list"], check=False, timeout_s=process.ANSWER_S)
    found: dict[str, str] = {}
    for line in done.stdout.decode(errors="replace").splitlines():
        match = re.fullmatch(r"(?:global|install|:env:)\.([a-z-]+)=(.*)", line)
        if match:
            found[match[1]] = str(ast.literal_eval(match[2]))
    return found


def apt_sources(base: str) -> Path | None:
    """This machine's Debian sources, where the base image is of the suite they name: a mirror that answers from here.

    scripts/base-image makes images that hold no sources at all.
    """
    match = re.search(r"(bookworm|trixie|forky)", base)
    for path in APT_SOURCES:
        text = path.read_text(errors="replace") if path.is_file() else ""
        if match and match[1] in text:
            return path
    return None


def proxies(image: Image) -> dict[str, str]:
    """image.proxy as variables, empty ones too, which keep the environment's own out; nothing where there is no image.proxy."""
    if image.proxy is None:
        return {}
    told = {"http_proxy": image.proxy.http, "https_proxy": image.proxy.https, "no_proxy": image.proxy.no_proxy}
    return {spelt: value or "" for name, value in told.items() for spelt in (name, name.upper())}


def _authorities(loaded: Loaded, pip: dict[str, str]) -> dict[str, Path]:
    image = loaded.spec.image
    ca = loaded.path_of(image.ca_bundle) if image.ca_bundle else Path(pip["cert"]) if pip.get("cert") else None
    if ca is None:
        return {}
    if not _is_pem(ca):
        raise ConfigError(f"image.ca_bundle: {ca} holds no PEM certificate", hint="name a file with CERTIFICATE blocks")
    return {"ca": ca}


def _index(image: Image, pip: dict[str, str], private: Path, environ: Mapping[str, str]) -> dict[str, Path]:
    """pip_conf and netrc; neither where no index is asked."""
    if not image.index:
        return {}
    own = image.index if isinstance(image.index, Index) else None
    settings = _index_settings(image, pip)
    lines = [f"{key} = {value}" for key, value in settings.items() if value]
    urls = [url for key in ("index-url", "extra-index-url") for url in settings.get(key, "").split()]
    logins = _login(own, environ) if own and own.password else _from_netrc(environ, urls)
    found = {}
    if lines:
        found["pip_conf"] = _write(private / "pip.conf", "[global]\n" + "\n".join(lines) + "\n")
    if logins:
        text = "".join(_entry(host, *login, python=image.python) for host, login in sorted(logins.items()))
        found["netrc"] = _write(private / "netrc", text)
    return found


def _index_settings(image: Image, pip: dict[str, str]) -> dict[str, str]:
    """Of pip's settings: builder.yaml's index, else this machine's.

    With an index of its own, pip's indexes are not for it, nor is trusted-host, which would let any certificate pass.
    """
    if not isinstance(image.index, Index):
        return {key: _remote_only(pip.get(key, "")) for key in PIP_KEYS}
    kept = {key: pip.get(key, "") for key in (("timeout", "retries") if image.proxy else ("timeout", "retries", "proxy"))}
    return {"index-url": image.index.url, "extra-index-url": " ".join(image.index.extra), **kept}


def _login(own: Index, environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Host to user and password: for the host of image.index.url alone. Raises ConfigError."""
    values = []
    for key, told in (("username", own.username), ("password", own.password)):
        name = told.env if isinstance(told, TokenRef) else ""
        value = environ.get(name, "") if name else str(told)
        if not value:
            raise ConfigError(f"image.index.{key} names {name}, which is not set", hint=f"export {name}=...")
        if not re.fullmatch(r"[!-~]+", value):
            hint = "put it into pip's own index-url, percent-encoded (pip config set global.index-url), and image.index: true"
            raise ConfigError(f"image.index.{key}: {name or value} holds a blank or a letter that is not ASCII", hint=hint)
        values.append(value)
    return dict.fromkeys(_hosts(own.url), (values[0], values[1]))


def _from_netrc(environ: Mapping[str, str], urls: Iterable[str]) -> dict[str, tuple[str, str]]:
    """What this user's netrc holds for the hosts of `urls`: pip here would use it too, and like pip, skip a broken one."""
    path = Path(environ.get("NETRC") or Path.home() / ".netrc")
    try:
        known = netrc.netrc(str(path))
    except (OSError, netrc.NetrcParseError):
        return {}
    found = {host: known.authenticators(host) for url in urls for host in _hosts(url)}
    return {host: (login[0], login[2] or "") for host, login in found.items() if login}


def _hosts(url: str) -> set[str]:
    """The host as written, which is how older requests look it up, and in lower case."""
    netloc = urlsplit(url).netloc.rpartition("@")[2]
    return {netloc.partition(":")[0], netloc.partition(":")[0].lower()} - {""}


def _entry(host: str, user: str, password: str, *, python: str) -> str:
    """One line of netrc. The image's pip reads it: its Python knows quotes and backslashes from 3.11 on (bpo-28806)."""
    if python != "3.10":
        user, password = ('"' + re.sub(r'(["\\])', r"\\\1", word) + '"' for word in (user, password))
    return f"machine {host} login {user} password {password}\n"


def _apt(loaded: Loaded, private: Path) -> dict[str, Path]:
    told = loaded.spec.image.apt
    if told is not None:
        found = {"apt_sources": _file(loaded, "sources", told.sources)}
        return found | ({"apt_auth": _file(loaded, "auth", told.auth)} if told.auth else {})
    sources = apt_sources(loaded.spec.image.base)
    if sources is None:
        return {}
    hosts = set(re.findall(r"https?://(?:[^\s/@]*@)?([^\s/:]+)", sources.read_text(errors="replace")))
    files = [file for path in APT_AUTH for file in (sorted(path.glob("*.conf")) if path.is_dir() else [path])]
    texts = [file.read_text() for file in files if file.is_file() and os.access(file, os.R_OK)]
    auth = "\n".join(text for text in texts if any(host in text for host in hosts))
    return {"apt_sources": sources} | ({"apt_auth": _write(private / "apt_auth.conf", auth)} if auth else {})


def _file(loaded: Loaded, key: str, text: str) -> Path:
    path = loaded.path_of(text)
    if not path.is_file():
        raise ConfigError(f"image.apt.{key}: {path}: no such file", hint="relative paths count from builder.yaml")
    return path


def _find_links(value: str) -> Path | None:
    """The one local folder that pip's find-links names; a second one, or a page on the web, is not a wheelhouse."""
    places = [Path(unquote(urlsplit(place).path)) for place in value.split() if urlsplit(place).scheme in ("", "file")]
    folders = [place for place in places if place.is_dir() and any(place.glob("*.whl"))]
    return folders[0] if len(folders) == 1 else None


def _remote_only(value: str) -> str:
    """Folders of this machine do not exist inside the build."""
    return " ".join(word for word in value.split() if not word.startswith(("file:", "/")))


def _is_pem(path: Path) -> bool:
    return path.is_file() and b"-----BEGIN CERTIFICATE-----" in path.read_bytes()


def _write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path
