"""What pip installed: every *.dist-info directly in a site-packages of the image, and what its METADATA says."""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.parser import HeaderParser

from packaging.markers import InvalidMarker, Marker, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement

from builder.image.attest.licences import of_metadata
from builder.image.attest.rootfs import Rootfs
from builder.image.lock import normal

INFO = re.compile(r"(?P<site>(?:.+/)?(?:site|dist)-packages)/[^/]+\.dist-info/METADATA")
WANTED = re.compile(r".+\.dist-info/(METADATA|RECORD)")


@dataclass(frozen=True, slots=True)
class Dist:
    """An installed distribution. name: as the index compares it. site: the folder that holds it.

    requires: as METADATA has them. files: paths that RECORD lists, links resolved.
    """

    name: str
    version: str
    site: str
    licence: str
    requires: tuple[str, ...]
    files: frozenset[str]


def dists(root: Rootfs, *, owned: Iterable[str] = ()) -> tuple[Dist, ...]:
    """By name, version and site. owned: paths that another package manager accounts for; what lies there is left to it."""
    taken = frozenset(owned)
    found = []
    for path in root.bodies:
        match = INFO.fullmatch(path)
        if match and path not in taken:
            found.append(_dist(root, path, match["site"]))
    return tuple(sorted((one for one in found if one.name), key=lambda one: (one.name, one.version, one.site)))


def environment(root: Rootfs, site: str) -> dict[str, str]:
    """The values of environment markers (PEP 508) for a Python that reads `site` in this image."""
    minor = re.search(r"/python(\d+\.\d+)/", f"/{site}/")
    python = minor[1] if minor else "3"
    exact = re.search(r"^version(?:_info)? *= *(\d+\.\d+\.\d+)", root.text(f"{site}/../../../pyvenv.cfg") or "", re.M)
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(str(root.config.get("architecture", "")), "")
    full = exact[1] if exact and exact[1].startswith(f"{python}.") else f"{python}.0"
    return {
        "python_version": python,
        "python_full_version": full,
        "implementation_version": full,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "platform_release": "",
        "platform_version": "",
    }


def applies(marker: str, values: Mapping[str, str], extra: str = "") -> bool:
    """Whether the marker holds; one that cannot be read is taken to hold."""
    try:
        return not marker or Marker(marker).evaluate({**values, "extra": extra})
    except (InvalidMarker, UndefinedEnvironmentName):
        return True


def edges(here: Iterable[Dist], values: Mapping[str, str], asks: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
    """Name of a distribution to those that it requires and that are there. asks: requirements that may name extras.

    Extras are followed from `asks` on: what only an extra needs is an edge if somebody asked for that extra.
    """
    by_name = {one.name: one for one in here}
    extras: dict[str, set[str]] = {name: {""} for name in by_name}
    found: dict[str, set[str]] = {name: set() for name in by_name}
    todo = [(name, "") for name in by_name]
    for ask in filter(None, map(_requirement, asks)):
        todo += [(normal(ask.name), extra) for extra in sorted(ask.extras) if normal(ask.name) in by_name]
    while todo:
        name, extra = todo.pop()
        extras[name].add(extra)
        for need in filter(None, map(_requirement, by_name[name].requires)):
            to = normal(need.name)
            if to in by_name and (need.marker is None or applies(str(need.marker), values, extra)):
                found[name] |= {to} - {name}
                todo += [(to, one) for one in sorted(need.extras) if one not in extras[to]]
    return {name: tuple(sorted(names)) for name, names in found.items()}


def _dist(root: Rootfs, path: str, site: str) -> Dist:
    text = root.text(path) or ""
    head = HeaderParser().parsestr(text)
    name, version = str(head.get("Name", "")), str(head.get("Version", ""))
    licence = of_metadata(
        str(head.get("License-Expression", "")), str(head.get("License", "")), [str(c) for c in head.get_all("Classifier", [])]
    )
    folder = posixpath.dirname(path)
    record = csv.reader((root.text(f"{folder}/RECORD") or "").splitlines())
    files = {root.resolve(posixpath.normpath(posixpath.join("/", site, row[0])).lstrip("/")) for row in record if row}
    files |= {path}
    requires = tuple(str(one) for one in head.get_all("Requires-Dist", []))
    return Dist(normal(name), version, site, licence, requires, frozenset(files))


def _requirement(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None
