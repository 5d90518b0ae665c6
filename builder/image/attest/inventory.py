"""What an image consists of, by who accounts for it: dpkg, pip, builder itself; and what nobody does."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from builder.errors import ClaimError, IntegrityError
from builder.image.attest import dists, dpkg, rootfs
from builder.image.attest.dists import Dist
from builder.image.attest.dpkg import Deb
from builder.image.attest.rootfs import Rootfs
from builder.image.lock import Lock, normal
from builder.units import count

VENV = "opt/venv/"
RUNTIME = "opt/builder/"
OS_RELEASE = ("etc/os-release", "usr/lib/os-release")
LAYERS = re.compile(r"opt/builder/layers/[^/]+\.json")
OURS = re.compile(r"(etc|usr/lib)/os-release|opt/builder/builder/__init__\.py|(.+/)?pyvenv\.cfg")
WANTED = re.compile("|".join(f"(?:{one.pattern})" for one in (dpkg.WANTED, dists.WANTED, LAYERS, OURS)))
DPKG_STATE = "var/lib/dpkg/"


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a wheel after pip installed it, as its layer tells: bytes before and after files were left out."""

    layer: str
    installed_bytes: int
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """digest, arch, created, labels: the image's. name: as the layout calls it, or "". os: the fields of os-release.

    runtime: version of builder's own program. requires: edges between wheels by name. values: environment markers of the
    image's Python. kept: by wheel. unowned: regular files that no package accounts for, sorted.
    """

    digest: str
    name: str
    arch: str
    created: datetime
    labels: Mapping[str, str]
    os: Mapping[str, str]
    debs: tuple[Deb, ...]
    dists: tuple[Dist, ...]
    requires: Mapping[str, tuple[str, ...]]
    values: Mapping[str, str]
    runtime: str
    kept: Mapping[str, Kept]
    unowned: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A wheel whose version in the lock is not that in the image; "" where one of the two has none."""

    name: str
    locked: str
    found: str

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "locked": self.locked, "found": self.found}

    def __str__(self) -> str:
        if not self.found:
            return f"{self.name} {self.locked} is in the lock, not in the image"
        if not self.locked:
            return f"{self.name} {self.found} is in the image, not in the lock"
        return f"{self.name} is {self.locked} in the lock, {self.found} in the image"


def take(image: Path, *, asks: tuple[str, ...] = ()) -> Inventory:
    """The inventory of an OCI archive or layout. asks: what was asked of pip, whose extras count as needs.

    Raises IntegrityError as `rootfs.read` does.
    """
    root = rootfs.read(image, lambda path: WANTED.fullmatch(path) is not None)
    packages = dpkg.debs(root)
    owned = {path for one in packages for path in one.files}
    wheels = dists.dists(root, owned=owned)
    served = [one for one in wheels if one.site.startswith(VENV)] or list(wheels)
    values = dists.environment(root, served[0].site if served else "")
    owned |= {path for one in wheels for path in one.files}
    config = root.config.get("config") or {}
    return Inventory(
        digest=root.digest,
        name=root.name,
        arch=str(root.config.get("architecture", "")),
        created=_created(root.config),
        labels=dict(config.get("Labels") or {}),
        os=_os_release(root),
        debs=packages,
        dists=wheels,
        requires=dists.edges(wheels, values, asks),
        values=values,
        runtime=_runtime(root),
        kept=_kept(root),
        unowned=tuple(path for path in root.files() if not _owned(path, owned)),
    )


def compare(found: Inventory, lock: Lock) -> tuple[Mismatch, ...]:
    """Wheels of /opt/venv against the lock, by name; a wheel whose marker does not hold here is not expected."""
    locked = {one.name: one.version for one in lock.wheels if dists.applies(one.marker, found.values)}
    here = {one.name: one.version for one in found.dists if one.site.startswith(VENV)}
    names = sorted(locked.keys() | here.keys())
    return tuple(
        Mismatch(name, locked.get(name, ""), here.get(name, "")) for name in names if locked.get(name) != here.get(name)
    )


def require_match(mismatches: tuple[Mismatch, ...], reference: str) -> None:
    """Raise ClaimError (exit 7) that lists every wheel that differs."""
    if mismatches:
        lines = "".join(f"\n  {one}" for one in mismatches)
        raise ClaimError(
            f"{reference}: {count(len(mismatches), 'wheel')} not as the lock has it{lines}",
            hint="build again with --no-cache; if they still differ, write the lock again",
            where={"mismatches": [one.to_json() for one in mismatches]},
        )


def _owned(path: str, owned: set[str]) -> bool:
    """Whether a package accounts for it: its own file, the bytecode of one, its metadata, or dpkg's own records."""
    if path in owned or path.startswith((RUNTIME, DPKG_STATE)):
        return True
    info = re.match(r"(.+\.dist-info)/", path)
    if info and f"{info[1]}/METADATA" in owned:
        return True
    compiled = re.fullmatch(r"(.*/)?__pycache__/([^/]+)\.(?:cpython|pypy)-\d+(?:\.opt-\d)?\.pyc", path)
    return compiled is not None and f"{compiled[1] or ''}{compiled[2]}.py" in owned


def _created(config: Mapping[str, Any]) -> datetime:
    text = str(config.get("created") or "1970-01-01T00:00:00Z")
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as exc:
        raise IntegrityError(f"image configuration: created: expected a time, found {text[:60]!r}") from exc


def _os_release(root: Rootfs) -> dict[str, str]:
    text = next((found for path in OS_RELEASE if (found := root.text(path)) is not None), "")
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def _runtime(root: Rootfs) -> str:
    match = re.search(r'^__version__ = "([^"]+)"', root.text(f"{RUNTIME}builder/__init__.py") or "", re.M)
    return match[1] if match else ""


def _kept(root: Rootfs) -> dict[str, Kept]:
    """What the layers' own reports say; a report of another form is passed over."""
    found = {}
    for path in sorted(root.bodies):
        if LAYERS.fullmatch(path):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                raw = json.loads(root.bodies[path])
                for name, one in raw["packages"].items():
                    found[normal(name)] = Kept(str(raw["layer"]), int(one["installed_bytes"]), int(one["kept_bytes"]))
    return found
