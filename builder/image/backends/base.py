"""What every back end is asked, what it answers, and what it can do, as data.

A back end builds a folder into an archive, and keeps images under names. Between the two lies the scan: an image has no
name until it is known to hold no secret and to do what it claims, so nobody can start or push one that does not.

    build ─▶ archive ─scan─▶ load (no name yet) ─prove─▶ tag ─▶ push
                 └──────────────┴─ drop, where the scan or the proof fails
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from builder.image.built import BuiltImage, Capabilities
from builder.progress import Progress

# Predefined build arguments: BuildKit keeps them out of history and cache keys.
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
ZSTD_LEVEL = 3
"""9 makes layers 6 % smaller in six times the time, and both unpack at the same speed (1.3 GB/s on one core)."""


@dataclass(frozen=True, slots=True)
class Options:
    """secrets: id to file. network: of RUN lines. no_cache: run every step again.

    pinned_base: digest that the base image must have, or "" where none is pinned yet.
    base: name and digest of the base image as it was checked; the build takes exactly that one.
    platforms: such as linux/arm64; none: the machine's own.
    cache_from, cache_to: folders (with a slash in front, or ./) and references of repositories.
    environ: variables of the build's client, such as proxies; no passwords, everybody may read a command line.
    """

    secrets: Mapping[str, Path] = field(default_factory=dict)
    network: str = "default"
    no_cache: bool = False
    pinned_base: str = ""
    base: tuple[str, str] = ("", "")
    platforms: tuple[str, ...] = ()
    cache_from: tuple[str, ...] = ()
    cache_to: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)

    def client(self, *more: str) -> list[str]:
        """The start of a command line that sets these variables, and `more`, NAME=VALUE."""
        return ["env", *more, *(f"{name}={value}" for name, value in self.environ.items())]


class Backend(Protocol):
    """One way to build and keep images. Each method raises CapabilityError or BuilderError with what the program said."""

    @property
    def capabilities(self) -> Capabilities: ...

    def base_digest(self, base: str) -> str:
        """The digest of the base image, pulled if need be. Raises CapabilityError if it cannot be had."""

    def build(self, folder: Path, archive: Path, options: Options, progress: Progress) -> BuiltImage:
        """Build `folder` into the new file `archive`. After an error there is no archive, and no image either."""

    def load(self, archive: Path, built: BuiltImage) -> None:
        """Make the archive an image of the engine, without a name, unless it is there already."""

    def tag(self, built: BuiltImage) -> None:
        """Give the image its name; another image that had it loses it."""

    def drop(self, built: BuiltImage) -> None:
        """Forget the image; if it has another name, it stays."""

    def save(self, reference: str, archive: Path) -> None:
        """The image as a new archive. Raises CapabilityError if there is no such image."""

    def inspect(self, reference: str) -> BuiltImage | None:
        """What the engine knows of an image; None where there is no such image."""

    def prove(self, built: BuiltImage, script: Path, *, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """Run `script` inside the image as its user, without a network; the script is mounted read-only."""

    def push(self, reference: str) -> str:
        """Send the image to its registry with the user's own credentials. Returns the digest that the program tells."""

    def remote_digest(self, reference: str) -> str:
        """The digest that the registry shows for `reference`, asked anew; "" where this machine has no program to ask."""

    def room(self) -> str:
        """Where the engine keeps images, for a message about a full disk; "" where that is on another machine."""


def number(version: str) -> tuple[int, ...]:
    """The first two numbers of a version.

    >>> number("26.1.5+dfsg1"), number("v0.13.1"), number("unknown")
    ((26, 1), (0, 13), ())
    """
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def is_folder(place: str) -> bool:
    """Whether a cache's place is a folder by its look.

    >>> is_folder("./cache"), is_folder("/var/cache/b"), is_folder("registry.example.com/llm/cache")
    (True, True, False)
    """
    return place.startswith(("/", "./", "../"))
