"""What this machine tells a build, without it ending up in an image: certificate authorities, package indexes, wheels."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from builder import process
from builder.config.load import Loaded
from builder.errors import ConfigError
from builder.image.resolve import Index

PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")
APT_SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))


@dataclass(frozen=True, slots=True)
class Given:
    """secrets: id to file, for BuildKit. wheelhouse: a folder of wheels, or None."""

    secrets: dict[str, Path]
    wheelhouse: Path | None


def gather(loaded: Loaded, private: Path) -> Given:
    """What builder.yaml names, else what this machine's own pip and apt use. private: a folder only this user can read.

    Raises ConfigError if image.ca_bundle or image.wheelhouse names something that is not there.
    """
    image = loaded.spec.image
    pip = pip_settings()
    secrets = {}
    ca = loaded.path_of(image.ca_bundle) if image.ca_bundle else Path(pip["cert"]) if pip.get("cert") else None
    if ca is not None:
        if not _is_pem(ca):
            raise ConfigError(f"image.ca_bundle: {ca} holds no PEM certificate", hint="name a file with CERTIFICATE blocks")
        secrets["ca"] = ca
    lines = [f"{key} = {_remote_only(pip[key])}" for key in PIP_KEYS if pip.get(key) and _remote_only(pip[key])]
    if lines:
        secrets["pip_conf"] = _write(private / "pip.conf", "[global]\n" + "\n".join(lines) + "\n")
    sources = apt_sources(image.base)
    if sources is not None:
        secrets["apt_sources"] = sources
    return Given(secrets, wheelhouse(loaded, pip))


def index(loaded: Loaded) -> Index:
    """Where `builder lock` looks: builder.yaml's index and wheelhouse, else what this machine's pip is set to."""
    pip, image = pip_settings(), loaded.spec.image
    ca = str(loaded.path_of(image.ca_bundle)) if image.ca_bundle else pip.get("cert", "")
    env = {"SSL_CERT_FILE": ca} if ca else {}
    if pip.get("index-url"):
        env["UV_DEFAULT_INDEX"] = pip["index-url"]
    extra = " ".join(place for place in pip.get("extra-index-url", "").split() if _remote_only(place))
    if extra:
        env["UV_INDEX"] = extra
    return Index(env, wheelhouse(loaded, pip), bool(image.index))


def wheelhouse(loaded: Loaded, pip: dict[str, str] | None = None) -> Path | None:
    """image.wheelhouse, else the one local folder of wheels that pip's find-links names. pip: its settings, if known."""
    if loaded.spec.image.wheelhouse:
        return loaded.path_of(loaded.spec.image.wheelhouse)
    return _find_links((pip_settings() if pip is None else pip).get("find-links", ""))


def pip_settings() -> dict[str, str]:
    """pip's settings here, environment last, as `pip config list` tells them; empty where there is no pip."""
    done = process.run([sys.executable, "-m", "pip", "config", "list"], check=False, timeout_s=60)
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
